"""Memory accesses of the kernels, counted from their addresses: a count of a stated pattern, nothing measured.

On a GPU a load of a warp is served in sectors of 32 bytes: as many as its lanes' addresses lie in. What a later load
asks of the same sector counts again, though a first-level cache may still hold it; `distinct` is what memory has to
bring at least. On a CPU the unit is a line of 64 bytes, touched once for each block of subspaces and page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pqkv.kernels.cuda.coded import CodedVariant
from pqkv.kernels.cuda.codes import words_of_loads
from pqkv.packing import packed_size

SECTOR, LINE, LANES = 32, 64, 32
BANKS, WORD = 32, 4  # of shared memory, and bytes of a word of it

Load = list[tuple[int, int]]  # address and bytes of every lane that takes part


@dataclass(frozen=True, slots=True)
class Accesses:
    """Loads of a warp (a CPU's: of a line), the units they are served in, how many of those differ, and the bytes that
    are asked for; all of the codes of `tokens` tokens.
    """

    tokens: int
    loads: int
    units: int
    distinct: int
    needed: int

    @property
    def used(self) -> float:
        """Bytes asked for over bytes of the units that served them."""
        return self.needed / (self.units * SECTOR)


def key_accesses(variant: CodedVariant, page_size: int) -> Accesses:
    """One warp reading the key codes of its 32 * key_tokens tokens in all subspaces, pages one after another."""
    return _counted(LANES * variant.key_tokens, _key_loads(variant, page_size))


def value_accesses(variant: CodedVariant, page_size: int) -> Accesses:
    """One warp, a subspace a lane, reading the value codes of as many tokens as its key codes."""
    tokens = LANES * variant.key_tokens
    return _counted(tokens, _value_loads(variant, page_size, tokens))


def cpu_lines(num_subspaces: int, nbits: int, page_size: int, layout: str, block: int) -> Accesses:
    """One page of a KV head read in blocks of `block` subspaces; a line counts once for each block that touches it."""
    touched: list[int] = []
    needed = 0
    for first in range(0, num_subspaces, block):
        lines = set()
        for m in range(first, first + block):
            for token in range(page_size):
                if layout == "row":
                    bit = token * 8 * packed_size(num_subspaces, nbits) + m * nbits
                else:
                    bit = m * 8 * packed_size(page_size, nbits) + token * nbits
                lines |= {bit // (8 * LINE), (bit + nbits - 1) // (8 * LINE)}
        touched += lines
        needed += block * page_size * nbits // 8
    return Accesses(page_size, len(touched), len(touched), len(set(touched)), needed)


def block_copy(tokens: int, row_bytes: int, lane_bytes: int) -> Accesses:
    """Warps copying rows that lie one after another, `lane_bytes` a lane and load."""
    starts = range(0, tokens * row_bytes, LANES * lane_bytes)
    end = tokens * row_bytes
    loads = ([(at, lane_bytes) for at in range(start, min(start + LANES * lane_bytes, end), lane_bytes)]
             for start in starts)  # fmt: skip
    return _counted(tokens, loads)


def byte_gather(tokens: int, num_subspaces: int, page_size: int) -> Accesses:
    """Warps of which a lane reads the codes of a token, a byte at a time, from transposed pages that follow each other:
    page * M * page_size + m * page_size + offset.
    """
    loads = (
        [(token // page_size * num_subspaces * page_size + m * page_size + token % page_size, 1)
         for token in range(first, min(first + LANES, tokens))]
        for first in range(0, tokens, LANES)
        for m in range(num_subspaces)
    )  # fmt: skip
    return _counted(tokens, loads)


def bank_passes(places: Iterable[int]) -> int:
    """Passes that a warp's access to these bytes of shared memory takes: as many as there are words in one bank."""
    words = {place // WORD for place in places}
    return max(sum(word % BANKS == bank for word in words) for bank in range(BANKS))


def _counted(tokens: int, loads: Iterable[Load]) -> Accesses:
    count = units = needed = 0
    distinct: set[int] = set()
    for load in loads:
        own = {at // SECTOR for first, size in load for at in (first, first + size - 1)}
        count, units, needed = count + 1, units + len(own), needed + sum(size for _, size in load)
        distinct |= own
    return Accesses(tokens, count, units, len(distinct), needed)


def _key_loads(variant: CodedVariant, page_size: int) -> Iterator[Load]:
    keys, step = variant.keys, variant.key_step
    width, count = words_of_loads(step.line)
    row = keys.layout == "row"
    line = packed_size(keys.num_subspaces if row else page_size, keys.nbits)
    starts = []
    for lane in range(LANES):
        token = lane * step.tokens
        page, inside = divmod(token, page_size)
        if row:
            starts.append(token * line)
        else:
            starts.append(page * keys.num_subspaces * line + inside * keys.nbits // 8)
    for m in range(0, keys.num_subspaces, step.subspaces):
        for i in range(step.tokens if row else step.subspaces):
            for w in range(count):
                at = i * line + m * keys.nbits // 8 if row else (m + i) * line
                yield [(start + at + 4 * w * width, 4 * width) for start in starts]


def _value_loads(variant: CodedVariant, page_size: int, tokens: int) -> Iterator[Load]:
    values, step = variant.values, variant.value_step
    row, stage = values.layout == "row", variant.stages[1]
    line = packed_size(values.num_subspaces if row else page_size, values.nbits)
    width, count = words_of_loads(step.line)
    for first in range(0, values.num_subspaces, stage):
        # where a stage has fewer subspaces than a warp has lanes, its teams go over tokens of their own
        teams = LANES // stage
        for start in range(0, tokens, step.tokens * teams):
            begins = [start + lane // stage * step.tokens for lane in range(LANES)]
            own = [first + lane % stage for lane in range(LANES)]
            if row:
                for j in range(step.tokens):
                    bits = [m * values.nbits for m in own]
                    for extra in range((values.nbits + 14) // 8):
                        load = [
                            ((token + j) * line + bit // 8 + extra, 1)
                            for token, bit in zip(begins, bits, strict=True)
                            if bit % 8 + values.nbits > 8 * extra
                        ]
                        if load:
                            yield load
                continue
            for w in range(count):
                yield [
                    (
                        (token // page_size * values.num_subspaces + m) * line
                        + token % page_size * values.nbits // 8 + 4 * w * width,
                        4 * width,
                    )
                    for token, m in zip(begins, own, strict=True)
                ]  # fmt: skip
