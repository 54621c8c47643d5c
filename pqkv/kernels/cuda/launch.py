"""Tensors and streams of torch as kernels take them, and each kernel compiled once per variant.

Numba's own launch wraps every tensor in an array of its own and looks at the type of every argument: half a millisecond
for the three launches of a step, where the GPU needs 30 microseconds. Here an argument is the seven words that Numba's
compiler makes of an array, and the compiled kernel is started as Numba starts it, by `cuda.core`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import torch
from numba import cuda
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.cuda.bounds import launch_bounds
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.reasons import reason

Factory = Callable[[Any], Callable[..., Any]]
Kernel = Any  # a Numba dispatcher, or the simulator's stand-in
_DRIVER = ("numba.cuda.cudadrv", "cuda.")  # where the errors of driver, linker and NVVM come from; they share no base
DeviceArray = Any  # `FlatArray`; under the simulator a NumPy array
Argument = DeviceArray | int | tuple[Any, ...]  # a tuple of arguments is one of the kernel
Kind = Any  # of an argument in a signature: a dtype, `_INTEGER` or a tuple of kinds
Starter = Callable[[int, tuple[int, ...], int, list[int]], None]  # stream, grid, block, words of the arguments
_INTEGER = "integer"  # what stands for a number among the dtypes of a signature


@dataclass(frozen=True, slots=True)
class FlatArray:
    """A contiguous tensor as a one-dimensional array; it keeps the memory alive."""

    tensor: Tensor
    dtype: torch.dtype
    words: tuple[int, ...]  # to compiled code: no owner, no parent, elements, bytes of one, address, shape, step


@cache
def compiled(factory: Factory, variant: Hashable) -> Kernel:
    """The dispatcher of `factory(variant)`; it compiles when first launched and never again in this process. The
    current device says what is asked of the assembler (`bounds.py`): of other devices too, whose numbers are the same.
    """
    if SIMULATED:
        return cuda.jit(factory(variant))
    from numba.cuda.core import config

    config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # grids of a few blocks are what short contexts have
    return cuda.jit(factory(variant), launch_bounds=launch_bounds(variant, torch.cuda.get_device_capability()))


def array(tensor: Tensor) -> DeviceArray:
    """A contiguous tensor as a flat array of its own dtype."""
    return _flat(tensor, tensor.dtype)


def words(tensor: Tensor) -> DeviceArray:
    """A contiguous tensor as a flat array of 32-bit words: the way to bfloat16, and to 128-bit loads."""
    return _flat(tensor, torch.int32)


def numbers(tensor: Tensor) -> DeviceArray:
    """A contiguous tensor of queries or outputs: float32 as it is, 16 bits a number as uint16 (`numbers.py`)."""
    return _flat(tensor, tensor.dtype if tensor.dtype == torch.float32 else torch.uint16)


def bits(value: float) -> int:
    """Those of a float32, which kernels take in an integer."""
    return int.from_bytes(struct.pack("<f", value), "little")


def _flat(tensor: Tensor, dtype: torch.dtype) -> DeviceArray:
    if SIMULATED:
        flat = tensor.detach().reshape(-1)
        if dtype == flat.dtype:
            return flat.numpy()
        signed, unsigned = (torch.int16, "uint16") if dtype == torch.uint16 else (torch.int32, "uint32")
        return flat.view(signed).numpy().view(unsigned)
    tensor = tensor.detach().contiguous()
    size = dtype.itemsize
    count, rest = divmod(tensor.numel() * tensor.element_size(), size)
    if rest:
        raise KernelError(f"{tensor.numel()} elements of {tensor.dtype} are no whole number of {size}-byte words")
    return FlatArray(tensor, dtype, (0, 0, count, size, tensor.data_ptr(), count, size))


def launch(kernel: Kernel, grid: tuple[int, ...], block: int, *arguments: Argument) -> None:
    """Run on torch's current stream, so that torch's operations before and after keep their order. Raises `KernelError`
    with the words of the driver or the compiler where a kernel cannot be compiled, loaded or started.
    """
    if SIMULATED:
        kernel[grid, block](*arguments)
        return
    kinds, numbers = _lowered(arguments)
    try:
        start = _starter(kernel, kinds)
        start(torch.cuda.current_stream().cuda_stream, grid, block, numbers)
    except Exception as error:
        if not type(error).__module__.startswith(_DRIVER):
            raise
        raise KernelError(f"CUDA: {type(error).__name__}: {reason(error)}") from error


def _lowered(arguments: tuple[Argument, ...]) -> tuple[tuple[Kind, ...], list[int]]:
    """Their kinds, and their words one after another: those of a tuple lie as if there were none, nothing of ()."""
    kinds: list[Kind] = []
    numbers: list[int] = []
    for argument in arguments:
        if isinstance(argument, FlatArray):
            kinds.append(argument.dtype)
            numbers += argument.words
        elif isinstance(argument, tuple):
            inner, found = _lowered(argument)
            kinds.append(inner)
            numbers += found
        else:
            kinds.append(_INTEGER)
            numbers.append(int(argument))
    return tuple(kinds), numbers


@cache
def _starter(kernel: Kernel, kinds: tuple[Kind, ...]) -> Starter:
    """Compile `kernel` for arguments of these kinds; what starts it on a stream with a grid, a block and its words."""
    from cuda.core import launch as start

    code = kernel.compile(signature(kinds))
    entry = code._codelibrary.get_cufunc().kernel  # numba-cuda is pinned: it has no public name for it

    def run(stream: int, grid: tuple[int, ...], block: int, numbers: list[int]) -> None:
        start(_stream(stream), _shape(grid, block), entry, *numbers)

    return run


def signature(kinds: tuple[Kind, ...]) -> tuple[Any, ...]:
    """Numba's types of arguments: an array of each dtype, 64 bits of a number, a tuple of a tuple."""
    from numba import types

    def one(kind: Kind) -> Any:  # noqa: ANN401 - Numba has no types of its types
        if isinstance(kind, tuple):
            return types.Tuple(signature(kind))
        if isinstance(kind, str):
            return types.int64
        return types.Array(getattr(types, str(kind).removeprefix("torch.")), 1, "C")

    return tuple(one(kind) for kind in kinds)


@cache
def _stream(handle: int) -> Any:  # noqa: ANN401 - of cuda.core, which has no types
    from cuda.core import Stream

    return Stream.from_handle(handle)


@lru_cache(maxsize=1024)
def _shape(grid: tuple[int, ...], block: int) -> Any:  # noqa: ANN401 - of cuda.core, which has no types
    from cuda.core import LaunchConfig

    return LaunchConfig(grid=grid, block=block)


@cache
def multiprocessors(device: torch.device) -> int:
    """Of the device; one under the simulator."""
    if SIMULATED:
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
