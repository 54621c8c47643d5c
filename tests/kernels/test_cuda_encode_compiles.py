"""What the encoding kernel becomes on a GPU, without one: PTX, then machine code, and what `ptxas` says of it."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from numba import cuda, types

from pqkv.kernels.cuda.coded import Codes
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.encode import EncodeVariant, encode_kernel

_NVIDIA = find_spec("nvidia")
ASSEMBLERS = [found for folder in (_NVIDIA and _NVIDIA.submodule_search_locations) or ()
              for found in Path(folder).glob("cu*/bin/ptxas")]  # fmt: skip
pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.skipif(not ASSEMBLERS, reason="needs ptxas: pip install 'pqkv[cuda]'"),
]
SHAPES = {"4 bits": (64, 8, 2), "3 bits": (64, 6, 2), "2 bits": (32, 8, 4)}  # of vectors of 128 elements
VECTORS = {"float32": types.float32, "float16": types.float16, "bfloat16": types.int16}


def assembled(variant, capability, folder):
    """Registers and bytes of shared memory, of stack and of spills."""
    flat = lambda kind: types.Array(kind, 1, "C")
    arrays = VECTORS[variant.dtype], types.float32, types.int64, types.float32, types.int64
    out = types.int32 if variant.unit == 4 else types.uint8
    signature = types.void(*map(flat, arrays), flat(out), *[types.int64] * 5)
    ptx, _ = cuda.compile_ptx(encode_kernel(variant), signature, cc=capability)
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    target = f"-arch=sm_{capability[0]}{capability[1]}"
    command = [ASSEMBLERS[0], "-v", target, source, "-o", folder / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    figures = re.search(
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*"
        r"Used (\d+) registers.*?(\d+) bytes smem",
        said.stdout + said.stderr, re.DOTALL,
    )  # fmt: skip
    assert figures, said
    stack, stores, loads, registers, shared = map(int, figures.groups())
    return registers, shared, stack, stores + loads


def check(variant, capability, folder):
    registers, shared, stack, spills = assembled(variant, capability, folder)
    print(variant.codes, variant.dtype, capability, registers, shared)
    assert (stack, spills) == (0, 0)
    assert shared == variant.shared_bytes <= 48 << 10
    assert registers <= 128  # two blocks of 256 threads a multiprocessor


def test_codes_of_2_bits_an_element_compile_without_spills(tmp_path):
    check(EncodeVariant(Codes(*SHAPES["2 bits"], "transposed"), 64, "float16", True, True), (9, 0), tmp_path)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("layout", ["row", "transposed"])
@pytest.mark.parametrize("bits", SHAPES)
def test_default_codes_compile_without_spills(bits, layout, dtype, capability, tmp_path):
    check(EncodeVariant(Codes(*SHAPES[bits], layout), 64, dtype, True, True), capability, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subspaces", "nbits", "d_sub"), [(128, 4, 1), (16, 8, 8), (8, 8, 16), (64, 12, 2), (60, 3, 2)]
)
def test_other_codes_compile_without_spills(subspaces, nbits, d_sub, tmp_path):
    check(EncodeVariant(Codes(subspaces, nbits, d_sub, "row"), 48, "bfloat16", True, True), (9, 0), tmp_path)
