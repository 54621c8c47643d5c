"""Memory that kernels read and a host reaches by copies alone, and the count of those copies.

On a GPU it is the GPU's. On a processor it is emulated: its buffers are known by where they lie, copies are real
copies, and an operation of the host on one is an error, as it would be there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from pqkv.errors import KernelError


@dataclass(slots=True)
class Traffic:
    """Copies over the bus by direction, and what else a host asks of a device."""

    up_copies: int = 0
    up_bytes: int = 0
    down_copies: int = 0
    down_bytes: int = 0
    allocations: int = 0
    launches: int = 0
    synchronizations: int = 0


class DeviceMemory:
    """Buffers of a device. `traffic` is counted by `Transfers`, around what is to be counted."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")
        self.traffic = Traffic()
        self.fail_copy: int | None = None  # copies from now on that succeed before one fails
        self.fail_launch = False
        self._buffers: dict[int, Tensor] = {}  # by address; an owner keeps its memory from being lent again
        self.running = False  # a kernel

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An allocation."""
        self.traffic.allocations += 1
        buffer = torch.empty(shape, dtype=dtype, device=self.device)
        self.lend(buffer)
        return buffer

    def lend(self, *tensors: Tensor) -> None:
        """Memory that is the device's from now on."""
        for tensor in tensors:
            self._buffers[tensor.untyped_storage().data_ptr()] = tensor

    def free(self, *tensors: Tensor) -> None:
        """Give memory back."""
        for tensor in tensors:
            del self._buffers[tensor.untyped_storage().data_ptr()]

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor, or what it is a view of, lies in this memory."""
        return tensor.device.type == "cuda" or tensor.untyped_storage().data_ptr() in self._buffers

    def launch(self, kernel: Callable[..., object], *arguments: Tensor | float) -> None:
        """Run a kernel on tensors of the device and numbers; raises `KernelError` for tensors of the host, and where
        the launch was told to fail.
        """
        if outside := [tuple(a.shape) for a in arguments if isinstance(a, Tensor) and not self.holds(a)]:
            raise KernelError(f"a kernel was given memory of the host, of shape {outside[0]}")
        if self.fail_launch:
            self.fail_launch = False
            raise KernelError("the launch failed, as it was told to")
        self.traffic.launches += 1
        self.running = True
        try:
            kernel(*arguments)
        finally:
            self.running = False

    def synchronize(self) -> None:
        """Wait for the device."""
        self.traffic.synchronizations += 1
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Transfers(TorchDispatchMode):
    """Sees every operation of torch below it and counts the copies between host and a memory as they happen.

    Raises `KernelError` for an operation of the host on emulated memory that is neither a view nor a copy, and for the
    copy that the memory was told to fail.
    """

    def __init__(self, memory: DeviceMemory) -> None:
        super().__init__()
        self.memory = memory

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: Sequence[object] = (), kwargs: Mapping[str, object] | None = None
    ) -> object:
        memory = self.memory
        if not memory.running:
            tensors = [a for a in args if isinstance(a, Tensor)]
            held = [memory.holds(t) for t in tensors]
            if func is torch.ops.aten.copy_.default:
                if held[0] != held[1]:
                    self._copied(tensors[0], up=held[0])
            elif any(held) and memory.device.type == "cpu" and not _is_view(func):
                raise KernelError(f"{func} on the host reads memory of the device")
        return func(*args, **(kwargs or {}))

    def _copied(self, target: Tensor, *, up: bool) -> None:
        memory, nbytes = self.memory, target.numel() * target.element_size()
        if memory.fail_copy is not None:
            if memory.fail_copy == 0:
                memory.fail_copy = None
                raise KernelError("the copy failed, as it was told to")
            memory.fail_copy -= 1
        if up:
            memory.traffic.up_copies += 1
            memory.traffic.up_bytes += nbytes
        else:
            memory.traffic.down_copies += 1
            memory.traffic.down_bytes += nbytes


def _is_view(func: OpOverload) -> bool:
    """Whether an operation returns its argument's memory and writes none."""
    returned = [r.alias_info for r in func._schema.returns]
    return bool(returned) and all(info is not None and not info.is_write for info in returned)
