"""What the generator becomes on processors that need not be there: the instructions it is for, and how many."""

import pytest

from pqkv.kernels.cpu.byte_lookups.assembly import instructions, key_loops, value_loops
from pqkv.kernels.cpu.byte_lookups.avx2 import Avx2
from pqkv.kernels.cpu.byte_lookups.avx512 import Avx512
from pqkv.kernels.cpu.byte_lookups.one_plane import Avx2OnePlane, Avx512OnePlane, VnniOnePlane
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.kernels.cpu.byte_lookups.vnni import Vnni

WIDE, NARROW = ("znver4", "sapphirerapids"), ("znver3", "haswell")
LOOK_UPS = {8: {"vpermi2b", "vpermt2b"}, 6: {"vpermb"}, 4: {"vpshufb"}}


def count(loops, names):
    """How often instructions of these names stand in all loops together."""
    return sum(loop.names[name] for loop in loops for name in names)


# per 64 tokens and subspace of four heads: counted, and a tenth on top for other versions of LLVM
@pytest.mark.parametrize(
    ("nbits", "d_sub", "keys", "values"), [(8, 2, 59, 58), (6, 2, 57, 52), (8, 4, 110, 111), (4, 1, 41, 29)]
)
@pytest.mark.parametrize("cpu", WIDE)
def test_avx512(cpu, nbits, d_sub, keys, values):
    shape = Shape(nbits, d_sub, 4)
    own, theirs = key_loops(Avx512, shape, cpu), value_loops(Avx512, shape, cpu)
    assert instructions(own, parts=True) <= keys
    assert instructions(theirs, parts=False) <= values
    assert all(loop.on_stack <= 17 for loop in own)  # of two subspaces or more: addresses, and a sum
    assert all(loop.on_stack <= 24 for loop in theirs)  # of 256 tokens and as many subspaces
    for loops in (own, theirs):
        assert count(loops, LOOK_UPS[nbits])
    assert count(own, {"vpdpwssd", "vpmaddwd"})  # LLVM may take the second for Intel, where it is sooner done
    assert count(theirs, {"vpdpbusd"}) == 4 * max(4, d_sub) * 4 * 2  # blocks, components, heads, planes


@pytest.mark.parametrize(("nbits", "d_sub", "keys", "values"), [(6, 2, 205, 225), (4, 1, 80, 75), (4, 2, 145, 160)])
@pytest.mark.parametrize("cpu", NARROW)
def test_avx2(cpu, nbits, d_sub, keys, values):
    shape = Shape(nbits, d_sub, 4)
    own, theirs = key_loops(Avx2, shape, cpu), value_loops(Avx2, shape, cpu)
    assert instructions(own, parts=True) <= keys
    assert instructions(theirs, parts=False) <= values
    for loops in (own, theirs):
        assert count(loops, {"vpshufb"})
        assert count(loops, {"vpmaddwd"})


@pytest.mark.parametrize(("nbits", "d_sub", "values"), [(6, 2, 200), (4, 1, 58), (4, 2, 116)])
@pytest.mark.parametrize("cpu", ["alderlake", "cascadelake"])
def test_dots_of_bytes_on_the_vectors_of_avx2(cpu, nbits, d_sub, values):
    shape = Shape(nbits, d_sub, 4)
    loops = value_loops(Vnni, shape, cpu)
    assert instructions(loops, parts=False) <= values
    assert instructions(loops, parts=False) < instructions(value_loops(Avx2, shape, cpu), parts=False)
    assert count(loops, {"vpdpbusd"}) == 4 * 2 * d_sub * 4 * 2  # blocks, halves, components, heads, planes
    one = instructions(value_loops(VnniOnePlane, shape, cpu), parts=False)
    assert one < 0.8 * instructions(value_loops(Avx2OnePlane, shape, cpu), parts=False)


@pytest.mark.parametrize(("nbits", "d_sub", "keys", "values"), [(8, 2, 40, 40), (4, 1, 26, 20)])
@pytest.mark.parametrize("cpu", WIDE)
def test_the_byte_form_with_avx512(cpu, nbits, d_sub, keys, values):
    shape = Shape(nbits, d_sub, 4)
    own, theirs = key_loops(Avx512OnePlane, shape, cpu), value_loops(Avx512OnePlane, shape, cpu)
    assert instructions(own, parts=True) <= keys
    assert instructions(theirs, parts=False) <= values
    assert all(loop.on_stack <= 9 for loop in own)
    assert count(own, {"vpdpbusd"}) == 4 * 4 * max(1, d_sub // 4)  # sums and heads, for four components
    assert count(theirs, {"vpdpbusd"}) == 4 * max(4, d_sub) * 4  # blocks, components, heads


@pytest.mark.parametrize("cpu", NARROW)
def test_the_byte_form_with_avx2(cpu):
    shape = Shape(6, 2, 4)
    assert instructions(value_loops(Avx2OnePlane, shape, cpu), parts=False) <= 174
    assert count(value_loops(Avx2OnePlane, shape, cpu), {"vpmaddubsw"}) == 2 * 2 * 4  # parts, components, heads
    assert not count(key_loops(Avx2OnePlane, shape, cpu), {"vpmaddubsw"})  # queries stay words


def test_eight_heads_are_scored_four_at_a_time():
    one, two = key_loops(Avx512, Shape(8, 2, 4), "znver4"), key_loops(Avx512, Shape(8, 2, 8), "znver4")
    assert len(one) == 1
    assert len(two) == 2
    assert [count([loop], {"vpdpwssd"}) for loop in two] == [32, 32]  # sums, heads, pairs of components
    assert sum(loop.on_stack for loop in two) <= 2 * 17


@pytest.mark.parametrize("heads", [1, 8])
def test_groups_of_one_and_of_eight_heads_use_the_same_instructions(heads):
    shape = Shape(6, 2, heads)
    assert count(value_loops(Avx512, shape, "znver4"), {"vpdpbusd"}) == 4 * 4 * heads * 2  # blocks, components, planes
    assert count(key_loops(Avx512, shape, "znver4"), {"vpdpwssd"}) == 4 * 2 * heads  # sums, pairs of components
    assert count(key_loops(Avx2, shape, "znver3"), {"vpmaddwd"}) == 2 * 4 * 2 * heads  # parts, sums, pairs
