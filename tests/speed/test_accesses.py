"""Counts of accesses, by hand for the shape that is easiest to see and by an independent walk of the others."""

import pytest

from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.speed.accesses import cpu_lines, key_accesses, value_accesses

FOUR = (64, 8, 2)


def variant(shape, layout, group=4):
    return coded_variant(group, Codes(*shape, layout), Codes(*shape, layout))


def test_keys_of_four_bits_by_hand():
    # transposed: a thread's 8 tokens are 8 bytes of a line; a warp reads 4 pages' 64 bytes of a subspace, 8 sectors
    found = key_accesses(variant(FOUR, "transposed"), 64)
    assert (found.tokens, found.loads, found.units, found.needed) == (256, 64, 64 * 8, 256 * 64)
    assert found.used == 1.0
    # rows: a thread reads 8 of the 64 bytes of a token at a time, so each lane has a sector of its own
    found = key_accesses(variant(FOUR, "row"), 64)
    assert (found.tokens, found.loads, found.units, found.needed) == (128, 4 * 8, 32 * 32, 128 * 64)
    assert found.used == 0.25


def test_values_of_four_bits_by_hand():
    # rows: 32 lanes read 32 bytes that lie together, one sector, for every token and half of the subspaces
    found = value_accesses(variant(FOUR, "row"), 64)
    assert (found.loads / found.tokens, found.units / found.tokens) == (2, 2)
    # transposed: a load brings 16 tokens of a lane's own line, half of a sector each
    found = value_accesses(variant(FOUR, "transposed"), 64)
    assert (found.loads / found.tokens, found.units / found.tokens) == (2 / 16, 4)


@pytest.mark.parametrize("layout", ["row", "transposed"])
@pytest.mark.parametrize("shape", [FOUR, (64, 6, 2), (32, 8, 4), (128, 4, 1)])
@pytest.mark.parametrize("side", [key_accesses, value_accesses])
def test_every_code_is_read_and_memory_brings_it_once(side, shape, layout):
    """However codes are read, what differs among the sectors is what holds the codes."""
    M, nbits, _ = shape
    found = side(variant(shape, layout), 64)
    codes = found.tokens * M * nbits // 8
    assert found.distinct * 32 == codes
    assert found.units >= found.distinct
    assert found.needed >= codes


def test_lines_of_a_cpu_by_hand():
    assert cpu_lines(64, 8, 64, "transposed", 8).units == 64
    # a token's row is one line of 64 bytes, and each of the 8 blocks comes by again
    row = cpu_lines(64, 8, 64, "row", 8)
    assert (row.units, row.distinct, row.needed) == (512, 64, 4096)
    # 6 bits: 48 lines hold the codes of a page, whichever way
    assert {cpu_lines(64, 6, 64, layout, 8).distinct for layout in ("row", "transposed")} == {48}
