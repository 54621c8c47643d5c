"""Attention on codes of any width, in float32 throughout: centroids are read from global memory, nothing is rounded.

Slower than `coded.py`, whose tables are fp16 in shared memory; it serves float32 queries and every shape that the other
cannot: odd widths, pages of odd sizes, tables too large for shared memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import cuda, float32, int32, int64, uint32, uint64

from pqkv.kernels.cuda.codes import Codes
from pqkv.kernels.cuda.device import LOWEST, power_of_two
from pqkv.kernels.turns import BLOCK as TURN
from pqkv.kernels.turns import POLYNOMIALS

_ROWS = 16  # of turns, whose weights lie in shared memory at a time


@dataclass(frozen=True, slots=True)
class PlainVariant:
    """What the kernel is compiled for; `tokens` are those of a split at most. For the rest see `CodedVariant`."""

    group: int
    keys: Codes
    values: Codes
    block: int = 128
    tokens: int = 512
    turning: bool = False
    gains: bool = False

    @property
    def turned_blocks(self) -> int:
        """Blocks of `turns` that a split lies in at most."""
        return (TURN - 1 + self.tokens - 1) // TURN + 1

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        turned = _ROWS * self.turned_blocks if self.turning else 0
        return 4 * self.group * (self.tokens + self.keys.num_subspaces * self.keys.d_sub + self.block + turned)


def plain_kernel(variant: PlainVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet; arguments as those of `coded_kernel`, but all codes and gains are bytes."""
    GROUP, BLOCK, TILE = variant.group, variant.block, variant.tokens
    keys, values = variant.keys, variant.values
    KM, KBITS, KSUB, KC, KROW = keys.num_subspaces, keys.nbits, keys.d_sub, keys.entries, keys.layout == "row"
    VM, VBITS, VSUB, VC, VROW = values.num_subspaces, values.nbits, values.d_sub, values.entries, values.layout == "row"
    D = KM * KSUB
    QUERY, WEIGHTS, RED = GROUP * D, GROUP * TILE, GROUP * BLOCK
    TURNING, GAINS, TURNED = variant.turning, variant.gains, variant.turned_blocks
    TURNED_WEIGHTS = _ROWS * TURNED * GROUP

    def kernel(
        query, key_codes, value_codes, key_centroids, value_centroids, key_channels, value_channels, table, lengths,
        partial, page_size, _page_shift, table_stride, kv_heads, chunks, key_heads, value_heads, window, share,
        first_slot, slots, turning, gains,
    ):  # fmt: skip
        q = cuda.shared.array(QUERY, float32)
        weights = cuda.shared.array(WEIGHTS, float32)
        meeting = cuda.shared.array(RED, float32)
        score = cuda.local.array(GROUP, float32)
        acc = cuda.local.array(VSUB, float32)

        split, kv, b = cuda.blockIdx.x, cuda.blockIdx.y // chunks, cuda.blockIdx.z
        batch = cuda.gridDim.z
        head = cuda.blockIdx.y * GROUP
        heads = kv_heads * chunks * GROUP
        thread = cuda.threadIdx.x
        key_book, value_book = min(kv, key_heads - 1), min(kv, value_heads - 1)
        length, residual = lengths[batch + b], lengths[2 * batch + b]
        low = int32(0)
        if window > 0:
            low = min(max(length + residual - window, 0), length)
        start = low + split * share
        end = min(start + share, length)
        at = ((b * heads + head) * slots + first_slot + split) * (D + 2)
        if start >= end:
            for g in range(thread, GROUP, BLOCK):
                partial[uint64(at + g * slots * (D + 2) + D + 1)] = 0.0
            return

        for index in range(thread, GROUP * D, BLOCK):
            channel = int64(key_channels[uint64(key_book * D + index % D)])
            q[index] = query[uint64((b * heads + head + index // D) * D + channel)]
        if TURNING:
            turned = cuda.shared.array(TURNED_WEIGHTS, float32)  # [row][block][head]
            phasors, middles, rows, slow, pairs, fast = turning
            first_block = start // TURN
            blocks = (end - 1) // TURN - first_block + 1
            for t in range(thread, end - start, BLOCK):
                for g in range(GROUP):
                    weights[t * GROUP + g] = 0.0
            for row in range(0, 2 * fast + POLYNOMIALS, _ROWS):
                count = min(2 * fast + POLYNOMIALS - row, _ROWS)
                cuda.syncthreads()
                for index in range(thread, count * TURNED * GROUP, BLOCK):
                    g, block, own = index % GROUP, index // GROUP % TURNED, row + index // (GROUP * TURNED)
                    if block < blocks:
                        polynomial = own - 2 * fast  # a row each for all slow pairs; below 0 a fast one's two
                        pair, last = (own // 2, own // 2 + 1) if polynomial < 0 else (fast, pairs)
                        is_even = (own if polynomial < 0 else polynomial) % 2 == 0
                        total = float32(0.0)
                        while pair < last:
                            at_turn = 2 * ((first_block + block) * pairs + pair)
                            at_phasor = 2 * ((b * heads + head + g) * pairs + pair)
                            cosine, sine = middles[uint64(at_turn)], middles[uint64(at_turn + 1)]
                            even, odd = phasors[uint64(at_phasor)], phasors[uint64(at_phasor + 1)]
                            component = even * cosine + odd * sine if is_even else odd * cosine - even * sine
                            if polynomial >= 0:
                                component *= slow[uint64((pair - fast) * POLYNOMIALS + polynomial)]
                            total += component
                            pair += 1
                        turned[index] = total
                cuda.syncthreads()
                for t in range(thread, end - start, BLOCK):
                    token = start + t
                    for i in range(count):
                        within = rows[uint64((row + i) * TURN + token % TURN)]
                        for g in range(GROUP):
                            weight = turned[(i * TURNED + token // TURN - first_block) * GROUP + g]
                            weights[t * GROUP + g] += weight * within
        cuda.syncthreads()
        for t in range(thread, end - start, BLOCK):
            token = start + t
            page = int64(table[uint64(b * table_stride + token // page_size)])
            slot = token % page_size
            for g in range(GROUP):
                score[g] = weights[t * GROUP + g] if TURNING else float32(0.0)
            for m in range(KM):
                line = page_size if KROW else KM
                row = (page * kv_heads + kv) * line + (slot if KROW else m)
                bit = (m if KROW else slot) * KBITS
                byte = row * (((KM if KROW else page_size) * KBITS + 7) // 8) + bit // 8
                code = uint32(key_codes[uint64(byte)])
                if bit % 8 + KBITS > 8:
                    code |= uint32(key_codes[uint64(byte + 1)]) << uint32(8)
                if bit % 8 + KBITS > 16:
                    code |= uint32(key_codes[uint64(byte + 2)]) << uint32(16)
                code = (code >> uint32(bit % 8)) & uint32(KC - 1)
                source = ((int64(key_book) * KM + m) * KC + int64(code)) * KSUB
                for e in range(KSUB):
                    c = key_centroids[uint64(source + e)]
                    for g in range(GROUP):
                        score[g] += q[g * D + m * KSUB + e] * c
            for g in range(GROUP):
                weights[t * GROUP + g] = score[g]
        cuda.syncthreads()
        for g in range(GROUP):
            top = float32(LOWEST)
            for t in range(thread, end - start, BLOCK):
                top = max(top, weights[t * GROUP + g])
            meeting[thread * GROUP + g] = top
        cuda.syncthreads()
        for g in range(GROUP):
            top = float32(LOWEST)
            for other in range(BLOCK):
                top = max(top, meeting[other * GROUP + g])
            for t in range(thread, end - start, BLOCK):
                weights[t * GROUP + g] = power_of_two(weights[t * GROUP + g] - top)
            if thread == 0:
                partial[uint64(at + g * slots * (D + 2) + D)] = top
        cuda.syncthreads()
        for g in range(thread, GROUP, BLOCK):
            mass = float32(0.0)
            for t in range(end - start):
                mass += weights[t * GROUP + g]
            partial[uint64(at + g * slots * (D + 2) + D + 1)] = mass
        if GAINS:
            stored_gains, gain_values = gains
            cuda.syncthreads()
            for t in range(thread, end - start, BLOCK):
                token = start + t
                page = int64(table[uint64(b * table_stride + token // page_size)])
                place = (page * kv_heads + kv) * page_size + token % page_size
                gain = gain_values[uint64(kv * 256 + int64(stored_gains[uint64(place)]))]
                for g in range(GROUP):
                    weights[t * GROUP + g] *= gain
            cuda.syncthreads()
        for index in range(thread, VM * GROUP, BLOCK):
            m, g = index // GROUP, index % GROUP
            for e in range(VSUB):
                acc[e] = 0.0
            for t in range(end - start):
                token = start + t
                page = int64(table[uint64(b * table_stride + token // page_size)])
                slot = token % page_size
                line = page_size if VROW else VM
                row = (page * kv_heads + kv) * line + (slot if VROW else m)
                bit = (m if VROW else slot) * VBITS
                byte = row * (((VM if VROW else page_size) * VBITS + 7) // 8) + bit // 8
                code = uint32(value_codes[uint64(byte)])
                if bit % 8 + VBITS > 8:
                    code |= uint32(value_codes[uint64(byte + 1)]) << uint32(8)
                if bit % 8 + VBITS > 16:
                    code |= uint32(value_codes[uint64(byte + 2)]) << uint32(16)
                code = (code >> uint32(bit % 8)) & uint32(VC - 1)
                source = ((int64(value_book) * VM + m) * VC + int64(code)) * VSUB
                for e in range(VSUB):
                    acc[e] += weights[t * GROUP + g] * value_centroids[uint64(source + e)]
            for e in range(VSUB):
                channel = int64(value_channels[uint64(value_book * D + m * VSUB + e)])
                partial[uint64(at + g * slots * (D + 2) + channel)] = acc[e]

    return kernel
