"""Kernels compiled for a GPU that need not be here: variant -> PTX -> cubin, and what the assembler says of it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from pqkv.errors import KernelError
from pqkv.kernels.cuda.bounds import launch_bounds
from pqkv.kernels.cuda.coded import CodedVariant, coded_kernel
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.encoding import EncodeVariant, encode_kernel
from pqkv.kernels.cuda.exact import ExactVariant, exact_kernel, rows_kernel
from pqkv.kernels.cuda.merge import MergeVariant, merge_kernel
from pqkv.kernels.cuda.plain import PlainVariant, plain_kernel
from pqkv.kernels.cuda.score_row import NaiveVariant, naive_kernel
from pqkv.kernels.cuda.slots import slots_kernel
from pqkv.kernels.cuda.warp import WarpVariant, warp_kernel

Capability = tuple[int, int]  # such as (9, 0)

_REMEDY = "pip install 'pqkv[cuda]'"
_PTXAS = Path("bin") / "ptxas"
# arguments after the arrays
_CODED_NUMBERS, _EXACT_NUMBERS, _NAIVE_NUMBERS, _WARP_NUMBERS, _ENCODE_NUMBERS, _SLOTS_NUMBERS = 13, 11, 4, 7, 5, 2
_ROWS_NUMBERS = 11
_TURN_TABLES = 4  # phasors and three tables


@dataclass(frozen=True, slots=True)
class Report:
    """What a block of the kernel takes: registers of a thread, bytes of static shared memory, and bytes of local memory
    that each thread has for its stack and for spilled registers.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int

    @property
    def spill_bytes(self) -> int:
        """Bytes spilled, written and read."""
        return self.spill_stores + self.spill_loads


@dataclass(frozen=True, slots=True)
class Compiled:
    """One kernel, assembled."""

    ptx: str
    cubin: bytes
    report: Report


def compile_coded(variant: CodedVariant, capability: Capability) -> Compiled:
    """`coded_kernel` as the backend launches it. Raises `KernelError` where there is no assembler."""
    from numba import types

    words, numbers = types.int32, types.uint8
    values = words if variant.values.layout == "transposed" else numbers
    arrays = [
        _numbers(variant.query), words, values, words, words, types.int64, types.int64, types.int32, types.int32,
        types.float32,
    ]  # fmt: skip
    return _compile(coded_kernel, variant, arrays, _CODED_NUMBERS, capability, _beside(variant, words))


def compile_plain(variant: PlainVariant, capability: Capability) -> Compiled:
    """`plain_kernel` as the backend launches it. Raises `KernelError` where there is no assembler."""
    from numba import types

    numbers = types.uint8
    arrays = [
        _numbers(variant.query), numbers, numbers, types.float32, types.float32, types.int64, types.int64, types.int32,
        types.int32, types.float32,
    ]  # fmt: skip
    return _compile(plain_kernel, variant, arrays, _CODED_NUMBERS, capability, _beside(variant, numbers))


def _numbers(dtype: str) -> Any:  # noqa: ANN401 - a type of Numba
    """That of the numbers of a query or an output, as `launch.numbers` hands them over."""
    from numba import types

    return types.float32 if dtype == "float32" else types.uint16


def _beside(variant: CodedVariant | PlainVariant, gains: Any) -> list[Any]:  # noqa: ANN401 - a type of Numba
    """Numba's types of what turns keys and of the gains of values, whose bytes are read as `gains`: empty tuples where
    a variant has none.
    """
    from numba import types

    floats, stored = types.Array(types.float32, 1, "C"), types.Array(gains, 1, "C")
    return [
        types.Tuple((*[floats] * _TURN_TABLES, types.int64, types.int64) if variant.turning else ()),
        types.Tuple((stored, floats) if variant.gains else ()),
    ]


def compile_exact(variant: ExactVariant, capability: Capability) -> Compiled:
    """`exact_kernel`, or `rows_kernel` where nothing is paged, as the backend launches it. Raises `KernelError` where
    there is no assembler.
    """
    from numba import types

    query, words = _numbers(variant.query), types.int32
    if variant.paged:
        arrays = [query, words, words, types.int32, types.int32, types.float32]
        return _compile(exact_kernel, variant, arrays, _EXACT_NUMBERS, capability)
    return _compile(rows_kernel, variant, [query, *[words] * 4, types.int32, types.float32], _ROWS_NUMBERS, capability)


def compile_naive(variant: NaiveVariant, capability: Capability) -> Compiled:
    """`naive_kernel` as backend `cuda-naive` launches it. Raises `KernelError` where there is no assembler."""
    from numba import types

    arrays = [
        types.float32, types.int32, types.int32, types.int32, types.int32, types.float32, types.float32,
    ]  # fmt: skip
    return _compile(naive_kernel, variant, arrays, _NAIVE_NUMBERS, capability)


def compile_warp(variant: WarpVariant, capability: Capability) -> Compiled:
    """`warp_kernel` as `one-warp` and `indexed` launch it. Raises `KernelError` where there is no assembler."""
    from numba import types

    arrays = [*[types.float32] * 3, *[types.int32] * 3, *[types.float32] * 2]
    return _compile(warp_kernel, variant, arrays, _WARP_NUMBERS, capability)


def compile_merge(variant: MergeVariant, capability: Capability) -> Compiled:
    """`merge_kernel` as the backend launches it. Raises `KernelError` where there is no assembler."""
    from numba import types

    outputs = (types.Array(kind, 1, "C") for kind in (_numbers(variant.dtype), types.float32))
    uneven = types.UniTuple(types.int64, 3) if variant.uneven else types.Tuple(())
    return _compile(merge_kernel, variant, [types.float32], 0, capability, [types.int64, *outputs, uneven])


def compile_encode(variant: EncodeVariant, capability: Capability, *, id_bits: int = 64) -> Compiled:
    """`encode_kernel` as `encode_pages` launches it, page ids of 32 or 64 bits. Raises `KernelError` where there is no
    assembler.
    """
    from numba import types

    vectors = {"float32": types.float32, "float16": types.float16, "bfloat16": types.int16}[variant.dtype]
    arrays = [
        vectors, types.float32, types.int64 if variant.permuted else types.float32, types.float32,
        types.int64 if id_bits == 64 else types.int32, types.int32 if variant.unit == 4 else types.uint8,
    ]  # fmt: skip
    return _compile(encode_kernel, variant, arrays, _ENCODE_NUMBERS, capability)


def compile_slots(bits: int, capability: Capability) -> Compiled:
    """`slots_kernel` as `write_slots` launches it, for elements of 16 or 32 bits. Raises `KernelError` where there is
    no assembler.
    """
    from numba import types

    elements = types.int32 if bits == 32 else types.int16
    return _compile(slots_kernel, None, [*[elements] * 4, types.int32], _SLOTS_NUMBERS, capability)


def find_ptxas() -> Path:
    """The assembler of NVIDIA's wheel. Raises `KernelError` naming the remedy where it is not installed."""
    for folder in _package_folders("nvidia.cu13"):
        if (folder / _PTXAS).is_file():
            return folder / _PTXAS
    raise KernelError(f"ptxas, the assembler of kernels, is not installed; remedy: {_REMEDY}")


def find_disassembler() -> Path | None:
    """`nvdisasm` from PATH, from CUDA_HOME, from NVIDIA's or from triton's wheel; None where there is none."""
    homes = [Path(home) / "bin" for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    bundled = [folder / "bin" for folder in _package_folders("nvidia.cu13")]
    bundled += [folder / "backends" / "nvidia" / "bin" for folder in _package_folders("triton")]
    for name in ("nvdisasm", "cuobjdump"):
        if found := shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, homes + bundled))):
            return Path(found)
    return None


def disassemble(cubin: bytes) -> str | None:
    """The SASS of a cubin, None where no disassembler is installed."""
    tool = find_disassembler()
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        flag = "-c" if tool.name == "nvdisasm" else "-sass"
        ran = subprocess.run([str(tool), flag, str(file)], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise KernelError(f"{tool} failed: {(ran.stderr.strip() or 'without a word').splitlines()[0]}")
    return ran.stdout


def _package_folders(name: str) -> list[Path]:
    """Where a package lies, without importing it (its parents are)."""
    try:
        found = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return []
    return [Path(folder) for folder in (found.submodule_search_locations or [])] if found is not None else []


def parse_report(text: str) -> Report:
    """What `ptxas -v` printed of one kernel; the last one it names, where a device function comes before."""
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
    used = re.findall(r"Used (\d+) registers[^\n]*", text)
    lines = re.findall(r"Used \d+ registers[^\n]*", text)
    if not frames or not used:
        raise KernelError("ptxas said nothing of registers and stack")
    shared = re.search(r"(\d+) bytes smem", lines[-1])
    stack, stores, loads = map(int, frames[-1])
    return Report(int(used[-1]), int(shared[1]) if shared else 0, stack, stores, loads)


def assemble(ptx: str, capability: Capability) -> tuple[bytes, Report]:
    """PTX -> cubin and report."""
    ptxas, name = find_ptxas(), f"sm_{capability[0]}{capability[1]}"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(ptx, encoding="ascii")
        command = [str(ptxas), "-v", f"-arch={name}", str(source), "-o", str(target)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            raise KernelError(f"ptxas failed for {name}: {(ran.stderr or ran.stdout).strip().splitlines()[0]}")
        return target.read_bytes(), parse_report(ran.stdout + ran.stderr)


def _compile(
    factory: Callable[[Any], Callable[..., Any]],
    variant: Hashable,
    arrays: list[Any],
    scalars: int,
    capability: Capability,
    more: Sequence[Any] = (),
) -> Compiled:
    if SIMULATED:
        raise KernelError("the simulator of numba compiles nothing; remedy: unset NUMBA_ENABLE_CUDASIM")
    if importlib.util.find_spec("numba_cuda") is None:
        raise KernelError(f"numba-cuda is not installed; remedy: {_REMEDY}")
    find_ptxas()  # before seconds of compilation
    from numba import cuda, types

    signature = types.void(*(types.Array(kind, 1, "C") for kind in arrays), *[types.int64] * scalars, *more)
    with _device_of(capability):
        ptx: str = cuda.compile_ptx(
            factory(variant), signature, cc=capability, launch_bounds=launch_bounds(variant, capability)
        )[0]
    return Compiled(ptx, *assemble(ptx, capability))


@contextmanager
def _device_of(capability: Capability) -> Iterator[None]:
    """Numba asks the current device, which need not be here, what device functions are to be compiled for."""
    from numba.cuda import dispatcher

    device = SimpleNamespace(compute_capability=capability)
    with mock.patch.object(dispatcher, "get_current_device", lambda: device):
        yield
