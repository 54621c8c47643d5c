"""Guards, divergence and reconvergence, barriers, lanes: written by hand, with what a GPU would leave."""

import numpy as np
import pytest

from ptx import load
from ptx.faults import BadBarrier, Poison, PtxFault, TooLong, UnknownForm
from ptx.written import kernel, run

NOTHING = np.zeros(4, np.uint32)
STORE = "mul.wide.u32 %rd0, %r20, 4; add.s64 %rd0, %rd0, %rd21; st.global.u32 [%rd0], %r0;"


def found(body, threads=32, **more):
    return run(body + STORE, NOTHING, np.zeros(threads, np.uint32), threads=threads, **more).tolist()


def test_a_guard_and_its_negation():
    body = "setp.lt.u32 %p0, %r20, 5; mov.u32 %r0, 9; @%p0 mov.u32 %r0, 1; @!%p0 add.s32 %r0, %r0, %r20;"
    assert found(body) == [1] * 5 + [9 + i for i in range(5, 32)]


def test_lanes_part_and_meet_again():
    """Each lane goes round a loop as often as its number says, by an odd and an even path, and all exchange after."""
    body = """
    mov.u32 %r0, 0; mov.u32 %r1, 0;
    LOOP: setp.ge.u32 %p0, %r1, %r20; @%p0 bra DONE;
    and.b32 %r2, %r1, 1; setp.eq.s32 %p1, %r2, 0; @%p1 bra EVEN;
    add.s32 %r0, %r0, 100; bra.uni NEXT;
    EVEN: add.s32 %r0, %r0, 1;
    NEXT: add.s32 %r1, %r1, 1; bra LOOP;
    DONE: shfl.sync.bfly.b32 %r0, %r0, 1, 31, 0xFFFFFFFF;
    """
    assert found(body) == [(j + 1) // 2 + j // 2 * 100 for j in (i ^ 1 for i in range(32))]


def test_a_path_laid_out_behind_its_meeting_point():
    body = """
    setp.gt.u32 %p0, %r20, 3; @%p0 bra FAR;
    mov.u32 %r0, 7;
    MEET: shfl.sync.idx.b32 %r0, %r0, 31, 31, 0xFFFFFFFF; bra END;
    FAR: mov.u32 %r0, 8; bra MEET;
    END: add.s32 %r0, %r0, 1;
    """
    with pytest.raises(Poison):  # lanes 0 to 3 come to the exchange first, and nothing makes them wait
        found(body)


def test_registers_of_inner_braces_are_others():
    body = "mov.u32 %r0, 5; { .reg .b32 %r0; mov.u32 %r0, 6; { .reg .b32 %r0; mov.u32 %r0, 7; } } "
    assert found(body) == [5] * 32


@pytest.mark.parametrize(("mode", "by", "clamp", "expected"), [
    ("bfly", 3, 31, [i ^ 3 for i in range(32)]),
    ("idx", 9, 31, [9] * 32),
    ("up", 2, 0, [max(i - 2, i if i < 2 else 0) for i in range(32)]),
    ("down", 2, 31, [i + 2 if i < 30 else i for i in range(32)]),
    ("down", 1, 0x181F, [i + 1 if i % 8 < 7 else i for i in range(32)]),
    ("idx", 3, 0x181F, [i // 8 * 8 + 3 for i in range(32)]),
])  # fmt: skip
def test_lanes_exchange(mode, by, clamp, expected):
    assert found(f"shfl.sync.{mode}.b32 %r0, %r20, {by}, {clamp}, 0xFFFFFFFF;") == expected


def test_a_lane_that_does_not_execute_has_nothing_to_give():
    exchange = "setp.lt.u32 %p0, %r20, 16; mov.u32 %r0, 1; @%p0 shfl.sync.bfly.b32 %r0, %r20, {}, 31, 0xFFFF;"
    assert found(exchange.format(8))[:16] == [i ^ 8 for i in range(16)]
    with pytest.raises(Poison):
        found(exchange.format(16))
    # what is thrown away does no harm; what decides does
    assert found(exchange.format(16) + "mov.u32 %r0, 3;") == [3] * 32
    assert found(exchange.format(16) + "selp.b32 %r0, 4, %r0, %p0;") == [4] * 16 + [1] * 16
    with pytest.raises(Poison):
        found(exchange.format(16) + "add.s32 %r0, %r0, 1; setp.eq.s32 %p1, %r0, 4; @%p1 bra L; mov.u32 %r0, 1; L: ")
    with pytest.raises(PtxFault, match="own mask"):
        found("shfl.sync.bfly.b32 %r0, %r20, 1, 31, 0xFFFF;")


def test_words_of_other_warps_are_seen_after_a_barrier():
    """In any order of the warps."""
    body = """
    shl.b32 %r1, %r20, 2; mov.u32 %r2, words; add.s32 %r1, %r1, %r2; st.shared.u32 [%r1], %r20;
    bar.sync 0;
    mov.u32 %r3, 127; sub.s32 %r3, %r3, %r20; shl.b32 %r1, %r3, 2; add.s32 %r1, %r1, %r2; ld.shared.u32 %r0, [%r1];
    """
    for seed in range(5):
        assert found(body, 128, variables=".shared .align 4 .b8 words[512];", seed=seed) == list(range(127, -1, -1))


@pytest.mark.parametrize("body", [
    "setp.lt.u32 %p0, %r20, 40; @%p0 bra L; bar.sync 0; L: mov.u32 %r0, 1;",  # within a warp
    "setp.lt.u32 %p0, %r20, 32; @%p0 bra L; bar.sync 0; L: mov.u32 %r0, 1;",  # between warps
    "setp.lt.u32 %p0, %r20, 32; @%p0 ret; bar.sync 0; mov.u32 %r0, 1;",
])  # fmt: skip
def test_a_barrier_that_not_all_threads_arrive_at(body):
    with pytest.raises(BadBarrier):
        found(body, 64)


def test_a_loop_without_an_end_comes_to_one():
    with pytest.raises(TooLong):
        found("LOOP: bra LOOP;", most_steps=1000)


@pytest.mark.parametrize("line", ["add.sat.s32 %r0, %r1, %r2", "vote.sync.any.pred %p0, %p1, -1", "add.s32 %r0, %r1",
                                  "add.s64 %r0, %r1, %r2", "bra NOWHERE", "mov.u32 %r0, %clock", "ld.u32 %r0, [%rd0]",
                                  "ld.global.v2.u32 %r0, [%rd0]"])  # fmt: skip
def test_what_is_not_known_is_refused_by_its_line_before_anything_runs(line):
    with pytest.raises(UnknownForm, match=line.split()[0]):
        load(kernel(line + ";"))


@pytest.mark.parametrize("line", ["call.uni (%r0), twice, (%r1)", "call (%r0), twice, (%r1)", "@%p0 call.uni twice"])
def test_a_call_is_refused_by_its_line(line):
    with pytest.raises(UnknownForm, match=r"written out.*call"):
        load(kernel(line + ";"))


@pytest.mark.parametrize("linkage", ["", ".visible ", ".extern .weak "])
def test_a_function_that_is_called_is_refused(linkage):
    function = f"{linkage}.func (.param .b32 out) twice(.param .b32 given)\n{{ ret; }}\n"
    text = kernel("mov.u32 %r0, 1;")
    assert load(text).name == "written"
    with pytest.raises(UnknownForm, match="functions that are called"):
        load(text.replace(".visible .entry", function + ".visible .entry"))


def test_a_register_that_nobody_wrote():
    with pytest.raises(PtxFault, match="nobody wrote"):
        found("add.s32 %r0, %r5, 1;")


def test_a_fault_names_its_line_block_warp_and_lanes():
    with pytest.raises(PtxFault, match=r"block \(0, 0, 0\), warp 1, lanes 8-31; line \d+: div.u32 %r0, 7, %r1"):
        given = "setp.gt.u32 %p0, %r20, 39; mov.u32 %r0, 1; mov.u32 %r1, 0;"
        found(given + "@%p0 bra L; bra END; L: div.u32 %r0, 7, %r1; END:", 64)
