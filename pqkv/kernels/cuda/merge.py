"""The partial results of all splits of a query head into one, by log-sum-exp."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import cuda, float32, uint64

from pqkv.kernels.cuda.device import LOWEST, device_function, power_of_two
from pqkv.kernels.cuda.numbers import number_writer

_LN2 = math.log(2)
_ROUND = 128  # slots whose maxima and sums lie in shared memory at a time
_AHEAD = 8  # values of as many slots are on their way at a time: one after another they take as long as all together


@dataclass(frozen=True, slots=True)
class MergeVariant:
    """What the kernel is compiled for; `dtype` is that of its output: float32, float16 or bfloat16. `uneven`: of
    blocks of heads that do not divide those of a KV head.
    """

    head_dim: int
    dtype: str = "float16"
    uneven: bool = False


def merge_block(head_dim: int) -> int:
    """Threads of a block."""
    return min(128, head_dim)


def read_round(head_dim, block):
    """read(partial, at, have, masses, tops, thread): sums and maxima of the `have` slots that begin at `at`, and of
    none up to a whole round.
    """
    D, ROUND = head_dim, _ROUND

    @device_function
    def read(partial, at, have, masses, tops, thread):
        for slot in range(thread, ROUND, block):
            mass, highest = float32(0.0), float32(LOWEST)
            if slot < have:
                mass = partial[uint64(at + slot * (D + 2) + D + 1)]
                # a split without tokens has written no maximum to be trusted, only the sum 0
                if mass != 0.0:
                    highest = partial[uint64(at + slot * (D + 2) + D)]
            masses[slot] = mass
            tops[slot] = highest

    return read


def add_slots(head_dim):
    """add(partial, at, have, masses, factors, e, value): to `value` element e of each slot times the slot's factor."""
    D, AHEAD = head_dim, _AHEAD

    @device_function
    def add(partial, at, have, masses, factors, e, value):
        read = cuda.local.array(AHEAD, float32)
        for slot in range(0, have, AHEAD):
            for u in range(AHEAD):
                read[u] = float32(0.0)
                if masses[slot + u] != 0.0:
                    read[u] = partial[uint64(at + (slot + u) * (D + 2) + e)]
            for u in range(AHEAD):
                value += factors[slot + u] * read[u]
        return value

    return add


def rows_of_heads(variant):
    """row_of(head, uneven): the row of partial results of one of all sequences' query heads."""

    @device_function
    def same(head, _uneven):
        return head

    @device_function
    def last_block_begins_earlier(head, uneven):
        heads, rows, block = uneven
        kv, own = head // heads, head % heads
        return kv * rows + (own + rows - heads if own >= rows - block else own)

    return last_block_begins_earlier if variant.uneven else same


def merge_kernel(variant: MergeVariant) -> Callable[..., Any]:
    """Grid (query heads, sequences), blocks of `merge_block`. partial (B, Hq, slots, D + 2) as `exact_kernel` writes it
    -> out (B, Hq, D), lse (B, Hq) float32 in natural units. Heads that saw nothing give 0 and -inf. uneven: () or, of a
    KV head, its query heads, its rows of partial results and those of a block.
    """
    D, BLOCK, ROUND = variant.head_dim, merge_block(variant.head_dim), _ROUND
    OWN = -(-D // BLOCK)
    read, add, write = read_round(D, BLOCK), add_slots(D), number_writer(variant.dtype)
    row_of = rows_of_heads(variant)

    def kernel(partial, slots, out, lse, uneven):
        masses = cuda.shared.array(ROUND, float32)
        tops = cuda.shared.array(ROUND, float32)
        factors = cuda.shared.array(ROUND, float32)
        value = cuda.local.array(OWN, float32)
        head, b, thread = cuda.blockIdx.x, cuda.blockIdx.y, cuda.threadIdx.x
        row = b * cuda.gridDim.x + head
        source = row_of(row, uneven)
        for i in range(OWN):
            value[i] = 0.0
        top, total = float32(LOWEST), float32(0.0)
        for first in range(0, slots, ROUND):
            at = (source * slots + first) * (D + 2)
            have = min(ROUND, slots - first)
            read(partial, at, have, masses, tops, thread)
            cuda.syncthreads()
            before = top
            for slot in range(have):
                top = max(top, tops[slot])
            for slot in range(thread, ROUND, BLOCK):
                factors[slot] = power_of_two(tops[slot] - top) if masses[slot] != 0.0 else float32(0.0)
            cuda.syncthreads()
            shrink = power_of_two(before - top)
            total *= shrink
            for slot in range(have):
                total += masses[slot] * factors[slot]
            for i in range(OWN):
                e = thread + i * BLOCK
                if e < D:
                    value[i] = add(partial, at, have, masses, factors, e, value[i] * shrink)
            cuda.syncthreads()
        for i in range(OWN):
            e = thread + i * BLOCK
            if e < D:
                write(out, row * D + e, value[i] / total if total != 0.0 else float32(0.0))
        if thread == 0:
            lse[uint64(row)] = (top + math.log2(total)) * float32(_LN2) if total != 0.0 else float32(-math.inf)

    return kernel
