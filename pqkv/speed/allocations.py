"""Bytes that operations of torch hold at once. A processor's torch keeps no statistics; this counts every storage that
an operation makes until nothing refers to it.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """`peak`: the most bytes that storages made inside took at once, beyond what was there before. What an operation
    allocates for itself and frees before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._take(tensor.untyped_storage(), given)
        return out

    def _take(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        name = storage._cdata
        if name in given or name in self._known:
            return
        self._known[name] = storage.nbytes()
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._give_back, name)

    def _give_back(self, name: int) -> None:
        self.held -= self._known.pop(name)
