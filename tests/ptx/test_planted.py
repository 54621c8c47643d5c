"""Mistakes planted in the PTX of kernels: each is found, by the executor or by the result."""

import re

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.kernels.cuda.backend import attention
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.merge import MergeVariant
from ptx.cases import Wrong, merge
from ptx.faults import Misaligned, OutOfBounds, Race

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.xdist_group("ptx"),  # one process compiles the kernels, not each its own
]
CODED = Spec(
    context=(65,), heads=1, group=4, head_dim=64, nbits=8, subspaces=(32, 32), dtype=torch.float16, unused="poison"
)
EXACT = CODED.but(nbits=None, layouts=("row", "row"), group=2, dtype=torch.float32)


def step(device, spec, kernel, change):
    """One decoding step with `change` done to the PTX of `kernel`, which has to find something to change."""

    def altered(name, ptx):
        if name != kernel:
            return ptx
        other = change(ptx)
        assert other != ptx
        return other

    device.change = altered
    batch = build(spec)
    out, lse = attention(*batch.inputs, scale=0.125)
    expected, expected_lse = brute_force(batch, 0.125)
    near = 3e-3 if spec.dtype == torch.float16 else 3e-5
    error = np.abs(out.double().numpy() - expected).max() / np.abs(expected).max()
    if not error <= near or not np.abs(lse.double().numpy() - expected_lse).max() <= near:
        raise Wrong(f"off by {error}")


def without_barrier(number):
    """The PTX without its barrier of this number, None where it has fewer."""

    def change(ptx):
        found = list(re.finditer(r"bar\.sync\s+0;", ptx))[number]
        return ptx[: found.start()] + ptx[found.end() :]

    return change


def replaced(pattern, by, *, count=1):
    return lambda ptx: re.sub(pattern, by, ptx, count=count)


def past_the_end(ptx):
    """The last token, which is read in place of those past the end, becomes the one after it."""
    for found in re.finditer(r"add\.s64\s+(%rd\d+), %rd\d+, (-1);", ptx):
        if re.search(rf"min\.s64\s+%rd\d+, {found[1]},", ptx):
            return ptx[: found.start(2)] + "0" + ptx[found.end(2) :]
    return ptx


PLANTED = {
    "a missing barrier": (CODED, "coded_kernel", without_barrier(0), Race),
    "a missing barrier of the merge": (CODED, "merge_kernel", without_barrier(0), Race),
    "a missing wait": (CODED, "coded_kernel", replaced(r"cp\.async\.wait_all;", ""), Wrong),
    "swapped operands of cvt.rn.f16x2": (
        CODED, "coded_kernel", replaced(r"(cvt\.rn\.f16x2\.f32 %r\d+), (%f\d+), (%f\d+);", r"\1, \3, \2;", count=0),
        Wrong,
    ),
    "a wrong selector of prmt": (CODED, "coded_kernel", replaced("0x4441", "0x4442", count=0), Wrong),
    "an unaligned vector load of shared memory": (
        CODED, "coded_kernel", replaced(r"(ld\.shared\.v4\.u32[^\[]*\[%rd\d+)\]", r"\1+4]"), Misaligned,
    ),
    "an unaligned vector load of global memory": (
        CODED, "coded_kernel", replaced(r"(ld\.global\.nc\.v4\.u32[^\[]*\[%rd\d+)\]", r"\1+8]"), Misaligned,
    ),
    "a table of pages read past its end": (
        CODED, "coded_kernel", replaced(r"(ld\.global\.s32\s+%rd\d+, \[%rd\d+)\]", r"\1+4096]", count=0), OutOfBounds,
    ),
    "a read of one slot past the context": (EXACT, "exact_kernel", past_the_end, Wrong),
}  # fmt: skip


def test_nothing_is_found_where_nothing_is_planted(device):
    step(device, CODED, "coded_kernel", lambda ptx: ptx + "\n")
    step(device, EXACT, "exact_kernel", lambda ptx: ptx + "\n")


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_mistake_is_found(name, device):
    spec, kernel, change, found = PLANTED[name]
    with pytest.raises(found):
        step(device, spec, kernel, change)


@pytest.mark.parametrize("number", range(3))
def test_each_barrier_of_the_merge_is_missed(number, device):
    """Before factors are read, before maxima are, and between rounds of slots: 130 of them take two rounds."""
    device.change = lambda name, ptx: without_barrier(number)(ptx)
    with pytest.raises(Race):
        merge(MergeVariant(64), 1)
    device.change = None
    merge(MergeVariant(64), 1)
