"""Exact keys and values in pages: one KV head of one sequence, one stretch of its tokens, all query heads of a group.

A row of D elements is read by LANES lanes, 128 bits each at a time; LANES is the largest power of two that divides the
row and fits the block, so sums are right at every block size. Each group of lanes goes over tokens of its own with an
online softmax in registers, and the groups are merged in shared memory at the end. Keys and values are read once for
all GROUP query heads. Sinks and residual are read by the same kernel: contiguous rows are pages as large as the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from numba import cuda, float32, int32, int64, uint32, uint64

from pqkv.kernels.cuda.device import (
    LOWEST,
    exchange,
    load_bfloats,
    load_floats,
    load_halves,
    power_of_two,
)

_LOADS = {"float32": load_floats, "float16": load_halves, "bfloat16": load_bfloats}
SHARED_BYTES = 48 << 10  # what Numba can give a block


@dataclass(frozen=True, slots=True)
class ExactVariant:
    """What the kernel is compiled for. `dtype` is that of the pages: float32, float16 or bfloat16."""

    dtype: str
    head_dim: int
    group: int
    block: int = 128
    tokens: int = 4  # in flight per group of lanes

    @property
    def vector(self) -> int:
        """Elements of a 128-bit load."""
        return 4 if self.dtype == "float32" else 8

    @property
    def lanes(self) -> int:
        """Lanes that read a row."""
        most = 32
        while most > self.block:
            most //= 2
        return gcd(self.head_dim // self.vector, most)

    @property
    def at_once(self) -> int:
        """Tokens that a block has in flight."""
        return self.block // self.lanes * self.tokens

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return 4 * (self.block // self.lanes) * self.group * (self.head_dim + 2)


def fitting(variant: ExactVariant) -> ExactVariant:
    """The variant with a block small enough for its partial results to fit shared memory."""
    while variant.shared_bytes > SHARED_BYTES and variant.block > variant.lanes:
        variant = replace(variant, block=variant.block // 2)
    return variant


def exact_kernel(variant: ExactVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (splits, KV heads * chunks of query heads, sequences).

    query (B, Hq, D) float32, times scale and log2(e); keys, values: words of pages (pages, Hkv, page_size, D); table
    (B, table_stride) int32, not read for sinks and residual; lengths (3, B) int32 of sinks, pages, residual, of which
    `part` is read here; partial (B, Hq, slots, D + 2) float32: mixed values, maximum of the scores in powers of two,
    sum; split i writes slot first_slot + i. The newest `window` columns are seen, all if it is 0. page_shift is log2 of
    the page size, or -1.
    """
    D, GROUP, BLOCK, U = variant.head_dim, variant.group, variant.block, variant.tokens
    VECTOR, LANES = variant.vector, variant.lanes
    TEAMS = BLOCK // LANES
    LOADS = D // (VECTOR * LANES)  # 128-bit loads of a row by one lane
    OWN = LOADS * VECTOR  # elements of a row that a lane holds
    LOAD = _LOADS[variant.dtype]
    WORDS = 4 * D // VECTOR  # of 32 bits, of a row
    TEAM_HEADS, TEAM_ELEMENTS, HELD, SCORES = TEAMS * GROUP, TEAMS * GROUP * D, GROUP * OWN, GROUP * U
    HALVINGS = LANES.bit_length() - 1

    def kernel(
        query, keys, values, table, lengths, partial, page_size, page_shift, table_stride, kv_heads, chunks, part,
        window, splits, first_slot, slots,
    ):  # fmt: skip
        maxima = cuda.shared.array(TEAM_HEADS, float32)
        sums = cuda.shared.array(TEAM_HEADS, float32)
        mixed = cuda.shared.array(TEAM_ELEMENTS, float32)
        q = cuda.local.array(HELD, float32)
        acc = cuda.local.array(HELD, float32)
        best = cuda.local.array(GROUP, float32)
        mass = cuda.local.array(GROUP, float32)
        score = cuda.local.array(SCORES, float32)
        row = cuda.local.array(OWN, float32)
        place = cuda.local.array(U, int64)

        split, kv, b = cuda.blockIdx.x, cuda.blockIdx.y // chunks, cuda.blockIdx.z
        batch = cuda.gridDim.z
        heads = kv_heads * chunks * GROUP
        head = cuda.blockIdx.y * GROUP
        thread = cuda.threadIdx.x
        team, lane = thread // LANES, thread % LANES

        sinks, paged, residual = lengths[b], lengths[batch + b], lengths[2 * batch + b]
        length = sinks if part == 0 else (paged if part == 1 else residual)
        before = 0 if part == 0 else (sinks if part == 1 else sinks + paged)
        low = int32(0)
        if window > 0:
            low = min(max(sinks + paged + residual - window - before, 0), length)
        share = (length - low + splits - 1) // splits
        start = low + split * share
        end = min(start + share, length)

        if team < TEAMS:
            mask = uint32(0xFFFFFFFF) if LANES == 32 else uint32(((1 << LANES) - 1) << (thread % 32 // LANES * LANES))
            for g in range(GROUP):
                best[g] = LOWEST
                mass[g] = 0.0
                for i in range(LOADS):
                    for e in range(VECTOR):
                        at = (b * heads + head + g) * D + (i * LANES + lane) * VECTOR + e
                        q[g * OWN + i * VECTOR + e] = query[uint64(at)]
                        acc[g * OWN + i * VECTOR + e] = 0.0
            token = start + team * U
            while token < end:
                for u in range(U):
                    # past the end the last token is read again and counted with weight 0
                    t = min(token + u, end - 1)
                    number = t >> page_shift if page_shift >= 0 else t // page_size
                    # a row of sinks or residual is the page of its sequence
                    page = int64(table[uint64(b * table_stride + number)]) if part == 1 else int64(b)
                    place[u] = ((page * kv_heads + kv) * page_size + t - number * page_size) * WORDS
                for u in range(U):
                    for i in range(LOADS):
                        LOAD(keys, place[u] + (i * LANES + lane) * 4, row, i * VECTOR)
                    for g in range(GROUP):
                        total = float32(0.0)
                        for e in range(OWN):
                            total += q[g * OWN + e] * row[e]
                        for halving in range(HALVINGS):
                            total += exchange(mask, total, int32(1 << halving))
                        score[u * GROUP + g] = total if token + u < end else float32(LOWEST)
                for g in range(GROUP):
                    top = best[g]
                    for u in range(U):
                        top = max(top, score[u * GROUP + g])
                    shrink = power_of_two(best[g] - top)
                    best[g] = top
                    mass[g] *= shrink
                    for e in range(OWN):
                        acc[g * OWN + e] *= shrink
                    for u in range(U):
                        weight = power_of_two(score[u * GROUP + g] - top)
                        score[u * GROUP + g] = weight
                        mass[g] += weight
                for u in range(U):
                    for i in range(LOADS):
                        LOAD(values, place[u] + (i * LANES + lane) * 4, row, i * VECTOR)
                    for g in range(GROUP):
                        for e in range(OWN):
                            acc[g * OWN + e] += score[u * GROUP + g] * row[e]
                token += TEAMS * U
            for g in range(GROUP):
                if lane == 0:
                    maxima[team * GROUP + g] = best[g]
                    sums[team * GROUP + g] = mass[g]
                for i in range(LOADS):
                    for e in range(VECTOR):
                        mixed[(team * GROUP + g) * D + (i * LANES + lane) * VECTOR + e] = acc[g * OWN + i * VECTOR + e]
        cuda.syncthreads()
        for index in range(thread, GROUP * D, BLOCK):
            g, e = index // D, index % D
            top = float32(LOWEST)
            for one in range(TEAMS):
                top = max(top, maxima[one * GROUP + g])
            value, total = float32(0.0), float32(0.0)
            for one in range(TEAMS):
                factor = power_of_two(maxima[one * GROUP + g] - top)
                total += factor * sums[one * GROUP + g]
                value += factor * mixed[(one * GROUP + g) * D + e]
            at = ((b * heads + head + g) * slots + first_slot + split) * (D + 2)
            partial[uint64(at + e)] = value
            if e == 0:
                partial[uint64(at + D)] = top
                partial[uint64(at + D + 1)] = total

    return kernel
