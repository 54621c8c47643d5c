"""The kernel of paged attention as first written: a block for a query head, its row of scores in shared memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from numba import cuda, float32, int32, int64, uint32, uint64

from pqkv.kernels.cuda.device import (
    LOWEST,
    device_function,
    exchange,
    float_of,
    floats_of_bfloats,
    floats_of_halves,
    power_of_two,
)

_LN2 = math.log(2)


@dataclass(frozen=True, slots=True)
class NaiveVariant:
    """What the kernel is compiled for: dtype of the pages, threads of a block, tokens the score row has room for."""

    dtype: str
    head_dim: int
    block: int = 128
    room: int = 8192
    # the faults of `pqkv.kernels.faults`: scores past `room`, and threads that see their own warp's result only
    past_room: Literal["refused", "dropped", "aliased"] = "refused"
    own_warp_max: bool = False
    own_warp_sum: bool = False

    @property
    def warps(self) -> int:
        """Of a block; the last may have fewer lanes."""
        return -(-self.block // 32)

    @property
    def row_words(self) -> int:
        """32-bit words of a row of keys or values."""
        return self.head_dim // (1 if self.dtype == "float32" else 2)

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return 4 * (self.room + self.warps)


def floats_of_word(variant):
    """floats(word): its one or two elements; of float32 the second means nothing."""
    WIDE, BRAIN = variant.dtype == "float32", variant.dtype == "bfloat16"

    @device_function
    def floats(word):
        if WIDE:
            return float_of(word), float32(0.0)
        return floats_of_bfloats(word) if BRAIN else floats_of_halves(word)

    return floats


def row_of_token(variant):
    """row(table, first, token, page_size, kv_heads, kv): the first word of its keys and values; the sequence's row of
    the table begins at `first`.
    """
    WORDS = variant.row_words

    @device_function
    def row(table, first, token, page_size, kv_heads, kv):
        page = int64(table[uint64(first + token // page_size)])
        return ((page * kv_heads + kv) * page_size + token % page_size) * WORDS

    return row


def score_row(variant):
    """score(query, at, keys, row): the product of a query from `at` on with the key at `row`."""
    WORDS, WIDE, floats = variant.row_words, variant.dtype == "float32", floats_of_word(variant)

    @device_function
    def score(query, at, keys, row):
        total = float32(0.0)
        for w in range(WORDS):
            first, second = floats(uint32(keys[uint64(row + w)]))
            if WIDE:
                total += query[uint64(at + w)] * first
            else:
                total += query[uint64(at + 2 * w)] * first + query[uint64(at + 2 * w + 1)] * second
        return total

    return score


def room_of_row(variant):
    """(slot(number), there(slot)): where the row has the score of a token, and whether it has: a score past the room is
    refused by the host, dropped, or put over that of an older token.
    """
    ROOM, DROPS, ALIASES = variant.room, variant.past_room == "dropped", variant.past_room == "aliased"

    @device_function
    def slot(number):
        return number % ROOM if ALIASES else number

    @device_function
    def there(slot):
        return not DROPS or slot < ROOM

    return slot, there


def block_max(variant):
    """top(value, warps, lane, warp, mask, here): the largest of the block, or of the own warp by its fault."""
    WARPS, WHOLE = variant.warps, not variant.own_warp_max

    @device_function
    def top(value, warps, lane, warp, mask, here):
        for halving in range(5):
            # where the partner does not exist a lane exchanges with itself; lane 0 still hears of all
            partner = int32(1 << halving) if lane ^ (1 << halving) < here else int32(0)
            value = max(value, exchange(mask, value, partner))
        if lane == 0:
            warps[warp] = value
        cuda.syncthreads()
        if not WHOLE:
            return warps[warp]
        for one in range(WARPS):
            value = max(value, warps[one])
        return value

    return top


def block_sum(variant):
    """total(value, warps, lane, warp, mask, here): the sum over the block, or over the own warp by its fault."""
    WARPS, WHOLE = variant.warps, not variant.own_warp_sum

    @device_function
    def total(value, warps, lane, warp, mask, here):
        for halving in range(5):
            exists = lane ^ (1 << halving) < here
            other = exchange(mask, value, int32(1 << halving) if exists else int32(0))
            value += other if exists else float32(0.0)
        if lane == 0:
            warps[warp] = value
        cuda.syncthreads()
        if not WHOLE:
            return warps[warp]
        value = float32(0.0)
        for one in range(WARPS):
            value += warps[one]
        return value

    return total


def naive_kernel(variant: NaiveVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (query heads, sequences).

    query (B, Hq, D) float32, times scale and log2(e); keys, values: 32-bit words of pages (pages, Hkv, page_size, D);
    table (B, table_stride) int32; context_len (B,) int32 -> out (B, Hq, D) float32, lse (B, Hq) float32.
    """
    D, BLOCK, ROOM, WARPS = variant.head_dim, variant.block, variant.room, variant.warps
    PER_WORD = D // variant.row_words
    row_of, score, floats = row_of_token(variant), score_row(variant), floats_of_word(variant)
    (slot_of, there), largest, total_of = room_of_row(variant), block_max(variant), block_sum(variant)

    def kernel(query, keys, values, table, context_len, out, lse, page_size, table_stride, kv_heads, window):
        scores = cuda.shared.array(ROOM, float32)
        warps = cuda.shared.array(WARPS, float32)
        head, b, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        heads = cuda.gridDim.x
        kv = head // (heads // kv_heads)
        length = context_len[b]
        low = max(length - window, 0) if window > 0 else int32(0)
        lane, warp = thread % 32, thread // 32
        # the last warp may have fewer lanes: only those that exist may be named
        here = min(32, BLOCK - warp * 32)
        mask = uint32(0xFFFFFFFF) if here == 32 else uint32((1 << here) - 1)
        at, first = (b * heads + head) * D, b * table_stride

        top = float32(LOWEST)
        for token in range(low + thread, length, BLOCK):
            found = score(query, at, keys, row_of(table, first, token, page_size, kv_heads, kv))
            slot = slot_of(token - low)
            if there(slot):
                scores[slot] = found
            top = max(top, found)
        top = largest(top, warps, lane, warp, mask, here)
        cuda.syncthreads()

        mass = float32(0.0)
        for token in range(low + thread, length, BLOCK):
            slot = slot_of(token - low)
            # what was dropped reads as zero
            weight = power_of_two((scores[slot] if there(slot) else float32(0.0)) - top)
            if there(slot):
                scores[slot] = weight
            mass += weight
        mass = total_of(mass, warps, lane, warp, mask, here)

        for e in range(thread, D, BLOCK):
            total = float32(0.0)
            for token in range(low, length):
                row = row_of(table, first, token, page_size, kv_heads, kv)
                even, odd = floats(uint32(values[uint64(row + e // PER_WORD)]))
                slot = slot_of(token - low)
                total += (scores[slot] if there(slot) else float32(0.0)) * (even if e % PER_WORD == 0 else odd)
            out[uint64(at + e)] = total / mass if length > low else float32(0.0)
        if thread == 0:
            lse[uint64(b * heads + head)] = (
                (top + math.log2(mass)) * float32(_LN2) if length > low else float32(-math.inf)
            )

    return kernel
