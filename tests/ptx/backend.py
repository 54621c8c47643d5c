"""The backend's own host code, with the executor where the GPU would be: tensors on the CPU, launched as PTX.

`pqkv.kernels.cuda.compile` makes the PTX; what it takes an argument for must be what the host passes.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import lru_cache
from unittest.mock import patch

import torch

from pqkv.kernels.cuda import backend, compile, encode, naive, warp
from pqkv.kernels.cuda.coded import coded_kernel
from pqkv.kernels.cuda.exact import exact_kernel, rows_kernel
from pqkv.kernels.cuda.launch import FlatArray
from pqkv.kernels.cuda.merge import merge_kernel
from pqkv.kernels.cuda.plain import plain_kernel
from pqkv.kernels.cuda.score_row import naive_kernel
from pqkv.kernels.cuda.warp import warp_kernel
from ptx import GlobalMemory, launch, load

_COMPILE = {
    coded_kernel: compile.compile_coded, exact_kernel: compile.compile_exact, rows_kernel: compile.compile_exact,
    plain_kernel: compile.compile_plain,
    naive_kernel: compile.compile_naive, warp_kernel: compile.compile_warp,
    merge_kernel: compile.compile_merge, encode.encode_kernel: compile.compile_encode,
}  # fmt: skip
_WRITTEN = {"partial", "out", "lse", "pages", "key_buffer", "value_buffer"}


@lru_cache(maxsize=64)
def ptx_of(factory, variant, capability, **more):
    """The PTX of a kernel, compiled once."""
    if factory is encode.slots_kernel:
        return compile.compile_slots(more["bits"], capability).ptx
    return _COMPILE[factory](variant, capability, **more).ptx


@lru_cache(maxsize=64)
def program(ptx):
    """Loaded once."""
    return load(ptx)


class Patched:
    """What `Device.install` takes for pytest's monkeypatch where no test runs: for good."""

    def setattr(self, owner, name, value):
        patch.object(owner, name, value).start()


@dataclass
class Device:
    """What stands in for `launch` and `compiled` of a module of `pqkv.kernels.cuda`. `change` may alter PTX first,
    `watch` the program that was loaded; both are given the kernel's name before it.
    """

    capability: tuple[int, int] = (9, 0)
    seed: int = 0
    change: object = None
    watch: object = None
    most_steps: int = 2_000_000  # of a warp
    launches: int = 0
    steps: int = 0
    names: list[str] = field(default_factory=list)
    asked: list[object] = field(default_factory=list)  # capability -> PTX of each kernel launched

    def install(self, monkeypatch):
        for module in (backend, encode, naive, warp):
            monkeypatch.setattr(module, "compiled", lambda factory, variant: (factory, variant))
            monkeypatch.setattr(module, "launch", self.launch)
        monkeypatch.setattr(backend, "multiprocessors", lambda device: 4)
        monkeypatch.setattr(encode, "_check_devices", lambda *tensors: None)
        room = backend.Step.partial
        monkeypatch.setattr(
            backend.Step, "partial", lambda step, slots: room(step, slots).fill_(torch.nan)
        )  # fmt: skip
        return self

    def launch(self, kernel, grid, block, *arguments):
        factory, variant = kernel
        names = list(inspect.signature(factory(variant)).parameters)
        memory, numbers = GlobalMemory(), []
        for name, argument in zip(names, arguments, strict=True):
            _lower(memory, name, argument, numbers)
        ptx = self._ptx(factory, variant, dict(zip(names, arguments, strict=True)))
        if self.change is not None:
            ptx = self.change(factory.__name__, ptx)
        loaded = program(ptx)
        if self.watch is not None:
            loaded = self.watch(factory.__name__, loaded)
        seed, most_steps = self.seed + self.launches, self.most_steps
        done = launch(loaded, grid, block, numbers, memory, seed=seed, most_steps=most_steps)
        self.launches += 1
        self.steps += done.steps
        self.names.append(factory.__name__)

    def _ptx(self, factory, variant, arguments):
        more = {}
        if factory is encode.encode_kernel:
            more["id_bits"] = 8 * arguments["page_ids"].dtype.itemsize
        elif factory is encode.slots_kernel:
            more["bits"] = 8 * arguments["keys"].dtype.itemsize
        self.asked.append(lambda capability: ptx_of(factory, variant, capability, **more))
        return self.asked[-1](self.capability)


def _lower(memory, name, argument, numbers):
    """The words of an argument, as Numba lays it out; addresses are those of the executor."""
    if isinstance(argument, FlatArray):
        words, tensor = list(argument.words), argument.tensor
        if words[2]:
            data = tensor.reshape(-1).view(torch.uint8).numpy()
            words[4] = memory.add(data, name, writable=name in _WRITTEN, offset=words[4] % 256)
        numbers += words
    elif isinstance(argument, tuple):
        for i, one in enumerate(argument):
            _lower(memory, f"{name}[{i}]", one, numbers)
    else:
        numbers.append(int(argument))
