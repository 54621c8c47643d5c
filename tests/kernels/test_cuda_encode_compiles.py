"""What the encoding kernel becomes on a GPU, without one: PTX, then machine code, and what `ptxas` says of it."""

from itertools import product

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.errors import KernelError
from pqkv.kernels.cuda.coded import Codes
from pqkv.kernels.cuda.compile import compile_encode, compile_slots, find_ptxas
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.encoding import EncodeVariant

try:
    ASSEMBLER = find_ptxas()
except KernelError:
    ASSEMBLER = None
pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.skipif(ASSEMBLER is None, reason="needs ptxas: pip install 'pqkv[cuda]'"),
]
SHAPES = {"4 bits": (64, 8, 2), "3 bits": (64, 6, 2), "2 bits": (32, 8, 4)}  # of vectors of 128 elements
AXES = SHAPES, ("row", "transposed"), ("float32", "float16"), [(8, 0), (9, 0)]
MARKS = [pytest.mark.slow, pytest.mark.ci], pytest.mark.slow
ALL = [  # CI takes each for one capability in turns
    pytest.param(*(value for _, value in found), marks=MARKS[sum(i for i, _ in found) % 2])
    for found in product(*map(enumerate, AXES))
]


def check(variant, capability):
    report = compile_encode(variant, capability).report
    print(variant.codes, variant.dtype, capability, report)
    assert (report.stack_bytes, report.spill_bytes) == (0, 0)
    assert report.shared_bytes == variant.shared_bytes <= 48 << 10
    assert report.registers <= 128  # two blocks of 256 threads a multiprocessor


def test_slots_compile_without_spills():
    report = compile_slots(16, (9, 0)).report
    assert (report.stack_bytes, report.spill_bytes, report.shared_bytes) == (0, 0, 0)


def test_codes_of_2_bits_an_element_compile_without_spills():
    check(EncodeVariant(Codes(*SHAPES["2 bits"], "transposed"), 64, "float16", True, True), (9, 0))


@pytest.mark.parametrize(("bits", "layout", "dtype", "capability"), ALL)
def test_default_codes_compile_without_spills(bits, layout, dtype, capability):
    check(EncodeVariant(Codes(*SHAPES[bits], layout), 64, dtype, True, True), capability)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("subspaces", "nbits", "d_sub"), [(128, 4, 1), (16, 8, 8), (8, 8, 16), (64, 12, 2), (60, 3, 2)]
)
def test_other_codes_compile_without_spills(subspaces, nbits, d_sub):
    check(EncodeVariant(Codes(subspaces, nbits, d_sub, "row"), 48, "bfloat16", True, True), (9, 0))
