"""Tensors and streams of torch as Numba takes them, and each kernel compiled once per variant."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import torch
from numba import cuda
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.reasons import reason

Factory = Callable[[Any], Callable[..., Any]]
Kernel = Any  # a Numba dispatcher, or the simulator's stand-in
_DRIVER = ("numba.cuda.cudadrv", "cuda.")  # where the errors of driver, linker and NVVM come from; they share no base
DeviceArray = Any  # a Numba device array; under the simulator a NumPy array


@cache
def compiled(factory: Factory, variant: Hashable) -> Kernel:
    """The dispatcher of `factory(variant)`; it compiles when first launched and never again in this process."""
    if not SIMULATED:
        from numba.cuda.core import config

        config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # grids of a few blocks are what short contexts have
    return cuda.jit(factory(variant))


def array(tensor: Tensor) -> DeviceArray:
    """A contiguous tensor as a flat array of its own dtype."""
    flat = tensor.detach().reshape(-1)
    return flat.numpy() if SIMULATED else cuda.as_cuda_array(flat, sync=False)


def words(tensor: Tensor) -> DeviceArray:
    """A contiguous tensor as a flat array of 32-bit words: the way to bfloat16, and to 128-bit loads."""
    flat = tensor.detach().reshape(-1).view(torch.int32)
    return flat.numpy().view("uint32") if SIMULATED else cuda.as_cuda_array(flat, sync=False)


def launch(kernel: Kernel, grid: tuple[int, ...], block: int, *arguments: DeviceArray | int) -> None:
    """Run on torch's current stream, so that torch's operations before and after keep their order. Raises `KernelError`
    with the words of the driver or the compiler where a kernel cannot be compiled, loaded or started.
    """
    if SIMULATED:
        kernel[grid, block](*arguments)
        return
    handle = torch.cuda.current_stream().cuda_stream
    stream = cuda.external_stream(handle) if handle else 0  # 0 is the default stream in both
    try:
        kernel[grid, block, stream](*arguments)
    except Exception as error:
        if not type(error).__module__.startswith(_DRIVER):
            raise
        raise KernelError(f"CUDA: {type(error).__name__}: {reason(error)}") from error


@cache
def multiprocessors(device: torch.device) -> int:
    """Of the device; one under the simulator."""
    if SIMULATED:
        return 1
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
