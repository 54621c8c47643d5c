"""What the attention kernels become on a GPU, without one: every variant is assembled and `ptxas` finds no fault."""

import re
from dataclasses import replace
from itertools import product

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.errors import KernelError
from pqkv.kernels.cuda.coded import CodedVariant, Codes, coded_variant
from pqkv.kernels.cuda.compile import (
    compile_coded,
    compile_exact,
    compile_naive,
    compile_plain,
    compile_warp,
    find_ptxas,
)
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.exact import SHARED_BYTES, ExactVariant, fitting
from pqkv.kernels.cuda.plain import PlainVariant
from pqkv.kernels.cuda.score_row import NaiveVariant
from pqkv.kernels.cuda.warp import WarpVariant

try:
    ASSEMBLER = find_ptxas()
except KernelError:
    ASSEMBLER = None
pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.skipif(ASSEMBLER is None, reason="needs ptxas: pip install 'pqkv[cuda]'"),
]
SHAPES = {4: (64, 8, 2), 3: (64, 6, 2), 2: (32, 8, 4)}  # of vectors of 128 elements
GROUPS = (1, 2, 4, 8)
CAPABILITIES = [(8, 0), (9, 0)]
DTYPES = ("float32", "float16", "bfloat16")
COMPILE = {
    CodedVariant: compile_coded, ExactVariant: compile_exact, PlainVariant: compile_plain, NaiveVariant: compile_naive,
}  # fmt: skip
many = [pytest.mark.slow, pytest.mark.ci]


def in_turns(first, *axes, turns=4):
    """Every combination for every capability in `make test-slow`; CI takes one in so many, number `first` to begin
    with, in which every value of every axis is.
    """
    return [
        pytest.param(
            *(value for _, value in found),
            marks=many if sum(i for i, _ in found) % turns == first else pytest.mark.slow,
        )
        for found in product(*map(enumerate, axes), enumerate(CAPABILITIES))
    ]


def coded(bits, group, layouts=("transposed", "transposed")):
    return coded_variant(group, *(Codes(*SHAPES[bits], layout) for layout in layouts))


def plain(bits, group, layout="transposed"):
    return PlainVariant(group, Codes(*SHAPES[bits], layout), Codes(*SHAPES[bits], layout))


BESIDE = {"turning": True, "gains": True}


def check(variant, capability):
    found = COMPILE[type(variant)](variant, capability)
    report = found.report
    print(variant, capability, report)
    assert (report.spill_bytes, report.stack_bytes) == (0, 0)
    # what the variant says of itself is what ptxas finds, but for the space that aligns arrays, and for the query in
    # fp16, which only look-ups of centroids read
    unread = 0
    if isinstance(variant, CodedVariant) and not variant.decodes:
        unread = 4 * variant.group * variant.keys.num_subspaces * variant.keys.centroid_words
    assert variant.shared_bytes - unread <= report.shared_bytes <= variant.shared_bytes + 64
    assert report.shared_bytes <= SHARED_BYTES
    assert report.registers * variant.block <= 65536
    assert f".target sm_{capability[0]}{capability[1]}" in found.ptx
    return found


@pytest.mark.parametrize(
    "variant",
    [plain(4, 4), NaiveVariant("float16", 128), fitting(ExactVariant("float16", 128, 4))],
    ids=lambda variant: type(variant).__name__,
)
def test_one_of_each_kernel_is_sound(variant):
    check(variant, (9, 0))


def test_numba_is_answered_for_a_device_only_while_it_compiles():
    from numba.cuda import dispatcher

    asked = dispatcher.get_current_device
    compile_naive(NaiveVariant("float16", 64), (9, 0))
    assert dispatcher.get_current_device is asked


def test_device_functions_are_written_out_where_they_are_called():
    """A call would put the arrays of registers that it is given into memory."""
    for found in (check(coded(4, 4), (8, 0)), check(plain(4, 4), (8, 0))):
        assert ".func" not in found.ptx
        assert not re.search(r"^\s*call", found.ptx, re.M)


def test_a_kernel_that_ends_early_does_the_work_of_its_phases():
    """What a part costs is the difference of two of these: nothing of a phase may be left out as useless."""
    whole = coded(4, 1)
    tables, scores, whole_ptx = (
        check(replace(whole, last=last), (9, 0)).ptx for last in ("tables", "scores", "values")
    )
    assert tables.count("cp.async.cg") > 0  # written out as often as the compiler likes
    assert whole_ptx.count("cp.async.cg") > scores.count("cp.async.cg") > 0
    # a look-up is a load of shared memory, and 8 tokens in 4 subspaces are written out; one word stood for the tables
    assert scores.count("ld.shared") - tables.count("ld.shared") >= 8 * 4 - 1


@pytest.mark.parametrize(("bits", "group", "capability"), in_turns(0, SHAPES, GROUPS))
def test_coded_kernels_are_sound(bits, group, capability):
    check(coded(bits, group), capability)


def parameters(found):
    """Those of the kernel."""
    return re.search(r"\.entry [^(]*\(([^)]*)\)", found.ptx)[1].count(".param")


def test_what_a_variant_does_not_have_it_does_not_take():
    """An array is 7 words and a number one; tuples that are empty are none."""
    variant = coded(4, 4)
    found = [check(replace(variant, **more), (9, 0)) for more in ({}, BESIDE)]
    assert [parameters(one) for one in found] == [10 * 7 + 13, 10 * 7 + 13 + 4 * 7 + 2 + 2 * 7]
    assert found[0].report.shared_bytes == found[1].report.shared_bytes


@pytest.mark.parametrize(("bits", "group", "capability"), in_turns(1, SHAPES, GROUPS))
def test_coded_kernels_with_a_bias_and_gains_are_sound(bits, group, capability):
    check(replace(coded(bits, group), **BESIDE), capability)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("layouts", [("row", "row"), ("row", "transposed"), ("transposed", "row")])
@pytest.mark.parametrize("group", [3, 4])
def test_coded_kernels_of_rows_with_a_bias_and_gains_are_sound(group, layouts):
    check(replace(coded(4, group, layouts), **BESIDE), (9, 0))


@pytest.mark.parametrize(("group", "capability"), in_turns(1, GROUPS, turns=2))
def test_plain_kernels_with_a_bias_and_gains_are_sound(group, capability):
    check(replace(plain(4, group, "row" if group == 2 else "transposed"), **BESIDE), capability)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("part", BESIDE)
@pytest.mark.parametrize("last", ["scores", "softmax", "values"])
def test_kernels_with_one_of_both_are_sound(last, part):
    check(replace(coded(4, 4), last=last, **{part: True}), (9, 0))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("layouts", [("row", "row"), ("row", "transposed"), ("transposed", "row")])
@pytest.mark.parametrize("bits", SHAPES)
def test_coded_kernels_of_rows_are_sound(bits, layouts):
    check(coded(bits, 4, layouts), (9, 0))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("shape", [(32, 8, 2), (32, 6, 2), (16, 8, 4)], ids=["4 bits", "3 bits", "2 bits"])
def test_coded_kernels_of_64_elements_are_sound(shape, group):
    codes = Codes(*shape, "transposed")
    check(coded_variant(group, codes, codes), (9, 0))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("last", ["tables", "scores", "softmax"])
@pytest.mark.parametrize("bits", (4, 2))
def test_kernels_that_end_early_are_sound(bits, last):
    check(replace(coded(bits, 4), last=last), (9, 0))


@pytest.mark.parametrize(("bits", "group", "capability"), in_turns(0, SHAPES, GROUPS))
def test_plain_kernels_are_sound(bits, group, capability):
    check(plain(bits, group, "row" if group == 2 else "transposed"), capability)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_naive_kernels_are_sound(dtype, capability):
    check(NaiveVariant(dtype, 128), capability)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("indexed", [False, True])
def test_one_warp_a_row_spills_nothing(indexed, capability):
    report = compile_warp(WarpVariant(64, indexed), capability).report
    assert (report.spill_bytes, report.stack_bytes, report.shared_bytes) == (0, 0, 0)
    assert report.registers <= 64


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("fault", [
    {"room": 2048, "past_room": "dropped"}, {"room": 2048, "past_room": "aliased"}, {"own_warp_max": True},
    {"own_warp_sum": True},
], ids=lambda fault: list(fault.values())[-1] if "room" in fault else next(iter(fault)))  # fmt: skip
def test_faulty_kernels_are_sound_but_for_their_fault(fault):
    check(NaiveVariant("float16", 128, **fault), (9, 0))


@pytest.mark.parametrize(("dtype", "group", "capability"), in_turns(0, DTYPES, GROUPS))
def test_exact_kernels_are_sound(dtype, group, capability):
    check(fitting(ExactVariant(dtype, 128, group)), capability)
