"""How many nodes a step has on a GPU, by counting while it runs: pqkv's kernels and torch's operations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from pqkv.kernels.cuda import launch

# operations of torch that are no work for a device: they make room, or another view of what is there
FREE = ("empty", "view", "reshape", "detach", "as_strided", "alias", "select", "slice", "unsqueeze", "unbind")


class Operations(TorchDispatchMode):
    """Those of torch that are work for a device, by name, in the order in which they were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self,
        operation: OpOverload,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        name = operation.name().removeprefix("aten::").partition(".")[0]
        if not any(free in name for free in FREE):
            self.found.append(name)
        return operation(*args, **(kwargs or {}))


def count_launches(call: Callable[[], object]) -> tuple[int, list[str]]:
    """(kernels that pqkv launches, operations of torch) of one call: each is a node of the graph that it is captured
    into, an operation one at least. Nothing is exchanged for that: Python's profiling hook sees calls of `launch`.
    Not for what is timed.
    """
    kernels = 0

    def saw(frame: FrameType, event: str, _argument: object) -> None:
        nonlocal kernels
        kernels += event == "call" and frame.f_code is launch.launch.__code__

    before = sys.getprofile()
    with Operations() as operations:
        sys.setprofile(saw)
        try:
            call()
        finally:
            sys.setprofile(before)
    return kernels, operations.found
