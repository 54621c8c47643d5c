"""Bounds, alignment, races, copies on their way: what a GPU lets pass and the executor does not."""

import numpy as np
import pytest

from ptx.faults import Misaligned, OutOfBounds, PtxFault, Race
from ptx.written import run

GIVEN = np.arange(64, dtype=np.uint32)
WORDS = ".shared .align 16 .b8 words[512];"
AT = "shl.b32 %r1, %r20, 2; mov.u32 %r2, words; add.s32 %r1, %r1, %r2;"  # %r1: this thread's word
STORE = "mul.wide.u32 %rd0, %r20, 4; add.s64 %rd0, %rd0, %rd21; st.global.u32 [%rd0], %r0;"


def found(body, threads=32, given=GIVEN, variables=WORDS, **more):
    return run(body + STORE, given, np.zeros(threads, np.uint32), threads=threads, variables=variables, **more).tolist()


@pytest.mark.parametrize("offset", [-4, 256, 1 << 20, 1 << 40])
def test_global_memory_has_bounds(offset):
    with pytest.raises(OutOfBounds):
        found(f"ld.global.u32 %r0, [%rd20+{offset}];")


def test_a_vector_may_not_hang_over_the_end():
    body = "ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%rd20+%s];"
    assert found(body.replace("%s", "240")) == [60] * 32
    with pytest.raises(OutOfBounds):
        found(body.replace("%s", "256"))
    with pytest.raises(OutOfBounds):
        found(body.replace("%s", "240"), given=GIVEN[:63])


@pytest.mark.parametrize(("form", "offset"), [
    ("ld.global.u32 %r0", 2), ("ld.global.v2.u32 {%r0, %r1}", 4), ("ld.global.nc.v4.u32 {%r0, %r1, %r2, %r3}", 8),
    ("ld.global.u16 %h0", 1), ("ld.global.u64 %rd1", 4),
])  # fmt: skip
def test_unaligned_loads(form, offset):
    with pytest.raises(Misaligned):
        found(f"mov.u32 %r0, 0; {form}, [%rd20+{offset}];")


def test_parts_of_a_vector_in_their_order():
    body = "ld.global.v4.u32 {%r3, %r0, %r2, %r1}, [%rd20+16]; mad.lo.s32 %r0, %r0, 100, %r1;"
    assert found(body) == [507] * 32
    body = "st.shared.v2.u32 [words+8], {%r20, 7}; ld.shared.u32 %r0, [words+12];"
    assert found(body, 1) == [7]


def test_small_elements_are_extended():
    given = np.array([0x80FF7F01], np.uint32)
    assert found("ld.global.s8 %r0, [%rd20+3];", given=given) == [0xFFFFFF80] * 32
    assert found("ld.global.u8 %r0, [%rd20+3];", given=given) == [0x80] * 32
    assert found("ld.global.s16 %r0, [%rd20+2];", given=given) == [0xFFFF80FF] * 32
    assert (
        found("ld.global.s32 %rd1, [%rd20]; shr.u64 %rd1, %rd1, 32; cvt.u32.u64 %r0, %rd1;", given=given)
        == [0xFFFFFFFF] * 32
    )


def test_what_is_given_is_not_written():
    with pytest.raises(PtxFault, match="not to be written"):
        found("mov.u32 %r0, 0; st.global.u32 [%rd20], %r0;")


def test_constant_loads_of_what_the_launch_writes():
    with pytest.raises(PtxFault, match="constant"):
        found("ld.global.nc.u32 %r0, [%rd21];")


def test_two_threads_that_write_one_word_of_global_memory():
    with pytest.raises(Race):
        found("mov.u32 %r0, 0; st.global.u32 [%rd21], %r20;")


def test_shared_memory_begins_as_nan():
    (word, *_) = found(AT + "ld.shared.u32 %r0, [%r1];")
    assert np.isnan(np.array([word], np.uint32).view(np.float32))
    assert np.isnan(np.array([word], np.uint32).view(np.float16)).all()


@pytest.mark.parametrize("offset", [-4, 512, 516])
def test_shared_memory_has_bounds(offset):
    with pytest.raises(OutOfBounds):
        found(f"st.shared.u32 [words+{offset}], 1; mov.u32 %r0, 0;", 1, variables=WORDS + ".shared .b8 more[64];")


def test_unaligned_vectors_of_shared_memory():
    with pytest.raises(Misaligned):
        found("ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [words+8];")


NEIGHBOUR = "xor.b32 %r3, %r1, 128; ld.shared.u32 %r0, [%r3];"  # of the other warp


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("second", [NEIGHBOUR, "xor.b32 %r3, %r1, 128; mov.u32 %r0, 0; st.shared.u32 [%r3], %r0;"])
def test_a_missing_barrier_is_a_race_in_either_order(second, seed):
    assert len(found(AT + "st.shared.u32 [%r1], %r20; bar.sync 0;" + second, 64, seed=seed)) == 64
    with pytest.raises(Race):
        found(AT + "st.shared.u32 [%r1], %r20;" + second, 64, seed=seed)


def test_a_write_where_another_warp_reads():
    with pytest.raises(Race):
        found(AT + "st.shared.u32 [%r1], %r20; bar.sync 0;" + NEIGHBOUR + "st.shared.u32 [%r1], %r20;", 64)


def test_lanes_of_a_warp_that_disagree():
    assert found("st.shared.u32 [words], 5; ld.shared.u32 %r0, [words];") == [5] * 32
    with pytest.raises(Race):
        found("mov.u32 %r0, 0; st.shared.u32 [words], %r20;")


COPY = (
    "shl.b32 %r1, %r20, 4; mov.u32 %r2, words; add.s32 %r1, %r1, %r2; cvt.u64.u32 %rd1, %r20; shl.b64 %rd1, %rd1, 4;"
    "add.s64 %rd1, %rd1, %rd20; cp.async.cg.shared.global [%r1], [%rd1], 16;"
)


def test_a_copy_lands_when_it_is_waited_for():
    many = np.arange(128, dtype=np.uint32)
    load = "ld.shared.u32 %r0, [%r1+8];"
    assert found(COPY + "cp.async.wait_all;" + load, given=many) == [4 * i + 2 for i in range(32)]
    late = np.array(found(COPY + load + "cp.async.wait_all;", given=many), np.uint32).view(np.float32)
    assert np.isnan(late).all()
    never = np.array(found(COPY + load, given=many), np.uint32).view(np.float32)
    assert np.isnan(never).all()


def test_a_copy_is_the_warps_own_until_the_barrier():
    many = np.arange(128, dtype=np.uint32)
    body = COPY.replace("cp.async", "setp.lt.u32 %p0, %r20, 32; @%p0 cp.async", 1)
    read = "and.b32 %r3, %r20, 31; shl.b32 %r3, %r3, 4; add.s32 %r3, %r3, %r2; ld.shared.u32 %r0, [%r3];"
    expected = [4 * (i % 32) for i in range(64)]
    assert found(body + "cp.async.wait_all; bar.sync 0;" + read, 64, given=many) == expected
    for missing in ("cp.async.wait_all;", ""):
        with pytest.raises(Race):
            found(body + missing + read, 64, given=many)


@pytest.mark.parametrize(("where", "by"), [("%r1", 8), ("%rd1", 8)])
def test_copies_are_aligned_on_both_sides(where, by):
    with pytest.raises(Misaligned):
        found(COPY.replace(f"[{where}]", f"[{where}+{by}]"), 1)


def test_local_memory_is_each_threads_own():
    local = ".local .align 4 .b8 mine[16];"
    body = local + "st.local.u32 [mine+4], %r20; ld.local.u32 %r0, [mine+4];"
    assert found(body) == list(range(32))
    (word, *_) = found(local + "ld.local.u32 %r0, [mine+8];")
    assert np.isnan(np.array([word], np.uint32).view(np.float32))
    with pytest.raises(OutOfBounds):
        found(local + "ld.local.u32 %r0, [mine+16];")
