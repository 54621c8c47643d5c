"""Counts of accesses, by hand for the shape that is easiest to see and by an independent walk of the others."""

import numpy as np
import pytest

from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.speed.accesses import bank_passes, block_copy, byte_gather, cpu_lines, key_accesses, value_accesses

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


def test_copies_of_rows_and_gathers_of_bytes_by_hand():
    """A tile of 128 tokens of 64 bytes is 8,192 bytes, 256 sectors, whoever brings it."""
    vectors, bytes_, gather = block_copy(128, 64, 16), block_copy(128, 64, 1), byte_gather(128, 64, 64)
    assert [(f.loads, f.units, f.distinct) for f in (vectors, bytes_, gather)] == [
        (16, 256, 256), (256, 256, 256), (256, 256, 256),
    ]  # fmt: skip
    assert block_copy(3, 10, 16).needed == 32  # whole loads


@pytest.mark.parametrize(("page_size", "tokens"), [(64, 128), (16, 70), (24, 100)])
def test_a_gather_reads_every_code_of_its_tokens_once(page_size, tokens):
    """Sectors by a walk of its own: a load brings a byte of 32 tokens, and pages begin where they begin."""
    pages = np.arange(-(-tokens // page_size) * 8 * page_size).reshape(-1, 8, page_size)
    sectors = 0
    for first in range(0, tokens, 32):
        for m in range(8):
            sectors += len(
                {pages[t // page_size, m, t % page_size] // 32 for t in range(first, min(first + 32, tokens))}
            )
    found = byte_gather(tokens, 8, page_size)
    assert (found.needed, found.units) == (tokens * 8, sectors)


@pytest.mark.parametrize(("stride", "passes"), [(1, 1), (4, 1), (8, 2), (64, 16), (128, 32), (0, 1), (132, 1)])
def test_passes_of_a_strided_access_by_hand(stride, passes):
    assert bank_passes(lane * stride for lane in range(32)) == passes
