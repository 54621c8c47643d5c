"""Blocks that are asked of the assembler: of which kernels, of what runs and of what is looked at offline alike."""

import re
from dataclasses import replace

import pytest
import torch

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.errors import KernelError
from pqkv.kernels.cuda import launch
from pqkv.kernels.cuda.bounds import launch_bounds
from pqkv.kernels.cuda.coded import Codes, coded_kernel, coded_variant
from pqkv.kernels.cuda.compile import compile_coded, compile_exact, find_ptxas
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.exact import ExactVariant, exact_kernel, fitting
from pqkv.kernels.cuda.merge import MergeVariant
from pqkv.kernels.cuda.plain import PlainVariant
from pqkv.speed.static import GPUS, occupancy

try:
    ASSEMBLER = find_ptxas()
except KernelError:
    ASSEMBLER = None
pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing")
assembling = pytest.mark.skipif(ASSEMBLER is None, reason="needs ptxas: pip install 'pqkv[cuda]'")
HOPPER, AMPERE = (9, 0), (8, 0)
CODES = Codes(64, 8, 2, "transposed")
EXACT, CODED = fitting(ExactVariant("float16", 128, 4)), coded_variant(4, CODES, CODES)
BRAIN = fitting(ExactVariant("bfloat16", 128, 4, query="bfloat16"))
UNMEASURED = [
    replace(EXACT, dtype="bfloat16"), replace(EXACT, query="bfloat16"), replace(EXACT, paged=False),
    replace(EXACT, uneven=True), replace(EXACT, head_dim=64), fitting(ExactVariant("float16", 128, 8)),
    replace(BRAIN, paged=False), replace(BRAIN, query="float32"), fitting(replace(BRAIN, group=8)),
    replace(CODED, turning=True, gains=True, query="float32"), replace(CODED, uneven=True),
    coded_variant(2, CODES, CODES), coded_variant(4, *[Codes(32, 8, 4, "transposed")] * 2),
    PlainVariant(4, CODES, CODES), MergeVariant(128), None,
]  # fmt: skip


def test_nothing_is_asked_that_was_not_timed():
    assert [launch_bounds(variant, HOPPER) for variant in (EXACT, BRAIN, CODED)] == [(128, 4), (128, 4), (128, 5)]
    assert [launch_bounds(variant, HOPPER) for variant in UNMEASURED] == [None] * len(UNMEASURED)
    assert [launch_bounds(variant, AMPERE) for variant in (EXACT, BRAIN, CODED)] == [None] * 3


def test_a_variant_may_ask_for_itself():
    assert launch_bounds(replace(EXACT, blocks=0), HOPPER) is None
    assert launch_bounds(replace(CODED, blocks=6), AMPERE) == (128, 6)
    assert launch_bounds(PlainVariant(4, CODES, CODES, blocks=9), HOPPER) == (128, 9)


def test_a_kernel_that_ends_early_is_bound_as_the_whole():
    assert launch_bounds(replace(CODED, last="scores"), HOPPER) == launch_bounds(CODED, HOPPER)


@pytest.mark.parametrize(
    ("factory", "variant"),
    [(exact_kernel, EXACT), (exact_kernel, BRAIN), (coded_kernel, CODED), (exact_kernel, UNMEASURED[0])],
)
@pytest.mark.parametrize("capability", [HOPPER, AMPERE])
def test_numba_is_asked_when_a_kernel_is_to_run(factory, variant, capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    kernel = launch.compiled.__wrapped__(factory, variant)
    assert kernel.targetoptions["launch_bounds"] == launch_bounds(variant, capability)


def directives(found):
    """Those of a kernel that bound its launches: (threads, blocks), None for what is not there."""
    texts = (re.search(pattern, found.ptx) for pattern in (r"\.maxntid (\d+)", r"\.minnctapersm (\d+)"))
    return tuple(text and int(text[1]) for text in texts)


@assembling
@pytest.mark.parametrize(
    ("compile_one", "variant", "expected", "spilled"),
    [
        (compile_exact, EXACT, (4, "registers"), False),
        (compile_exact, replace(EXACT, blocks=0), (3, "registers"), False),
        (compile_exact, BRAIN, (4, "registers"), True),  # a little, and is timed with it
        (compile_coded, CODED, (4, "shared memory"), False),  # which allows no fifth: only its instructions change
    ],
    ids=["exact", "exact alone", "exact in bfloat16", "coded"],
)
def test_what_is_asked_is_in_the_ptx_and_what_it_spills_is_known(compile_one, variant, expected, spilled):
    found, asked = compile_one(variant, HOPPER), launch_bounds(variant, HOPPER)
    assert directives(found) == (asked or (None, None))
    assert (0 < found.report.spill_bytes <= 16) == (found.report.stack_bytes > 0) == spilled
    fits = occupancy(found.report, variant.block, GPUS["h100"])
    assert (fits.blocks, fits.limit) == expected
