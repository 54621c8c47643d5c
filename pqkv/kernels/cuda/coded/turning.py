"""The bias of scores by position: rows of `turns`, weighted with each query head's phasors as they stand in the middle
of a block of `TURN` tokens. Weights lie in the shared table as [row][block][head].
"""

from typing import Any, NamedTuple

from numba import cuda, float32, int64, uint32, uint64

from pqkv.kernels.cuda.device import bias_step, bits_of, device_function
from pqkv.kernels.turns import BLOCK as TURN
from pqkv.kernels.turns import POLYNOMIALS


class Turned(NamedTuple):
    """Blocks that a stretch lies in, `count` from `first` on; the number of its first head among all phasors, and what
    scores are times.
    """

    first: Any
    count: Any
    phasors: Any
    scale: Any


@device_function
def turn(middles, at_turn, phasors, at_phasor):
    """A phasor in the middle of a block: (even, odd)."""
    cosine, sine = middles[uint64(at_turn)], middles[uint64(at_turn + 1)]
    even, odd = phasors[uint64(at_phasor)], phasors[uint64(at_phasor + 1)]
    return even * cosine + odd * sine, odd * cosine - even * sine


def weigh_slow_pairs(variant):
    """weigh(turning, turned, tables, thread): all slow pairs are polynomials in the place in a block."""
    GROUP, BLOCK, ROW = variant.group, variant.block, variant.turned_blocks * variant.group

    @device_function
    def weigh(turning, turned, tables, thread):
        phasors, middles, _, slow, pairs, fast = turning
        polynomial = cuda.local.array(POLYNOMIALS, float32)
        index = thread
        while index < turned.count * uint32(GROUP):
            g, block = uint32(index % uint32(GROUP)), uint32(index // uint32(GROUP))
            at_turn = 2 * ((turned.first + int64(block)) * pairs + fast)
            at_phasor = 2 * ((turned.phasors + int64(g)) * pairs + fast)
            for k in range(POLYNOMIALS):
                polynomial[k] = 0.0
            for pair in range(pairs - fast):
                even, odd = turn(middles, at_turn, phasors, at_phasor)
                for k in range(POLYNOMIALS):
                    polynomial[k] += (even if k % 2 == 0 else odd) * slow[uint64(pair * POLYNOMIALS + k)]
                at_turn += 2
                at_phasor += 2
            for k in range(POLYNOMIALS):
                tables[uint32(index + uint32(k * ROW))] = bits_of(polynomial[k] * turned.scale)
            index = uint32(index + uint32(BLOCK))

    return weigh


def weigh_fast_pairs(variant):
    """weigh(turning, turned, pair, count, tables, thread): `count` fast pairs from `pair` on, two rows each."""
    GROUP, BLOCK, BLOCKS = variant.group, variant.block, variant.turned_blocks
    ROW = BLOCKS * GROUP

    @device_function
    def weigh(turning, turned, pair, count, tables, thread):
        phasors, middles, _, _, pairs, _ = turning
        index = thread
        while index < uint32(count) * uint32(ROW):
            own = uint32(index // uint32(ROW))
            g, block = uint32(index % uint32(GROUP)), uint32(index // uint32(GROUP) % uint32(BLOCKS))
            if block < turned.count:
                at_turn = 2 * ((turned.first + int64(block)) * pairs + pair + int64(own))
                at_phasor = 2 * ((turned.phasors + int64(g)) * pairs + pair + int64(own))
                even, odd = turn(middles, at_turn, phasors, at_phasor)
                target = uint32(index + own * uint32(ROW))
                tables[target] = bits_of(even * turned.scale)
                tables[uint32(target + uint32(ROW))] = bits_of(odd * turned.scale)
            index = uint32(index + uint32(BLOCK))

    return weigh


def bias_scores(variant):
    """bias_scores(turning, scale, first_head, stretch, token, tables, score, thread): adds the bias, times scale, to
    the scores of a thread's tokens, the first of which is `token`.
    """
    GROUP, ROW, PAIRS = variant.group, variant.turned_blocks * variant.group, variant.turned_pairs
    add_bias = bias_step(variant.key_tokens, GROUP)
    weigh_slow, weigh_fast = weigh_slow_pairs(variant), weigh_fast_pairs(variant)

    @device_function
    def add_rows(rows, row, count, own_row, own_weight, tables, score):
        """`count` rows from number `row` on, whose weights are in the table."""
        at_row, at_weight = row * TURN + own_row, own_weight
        for _row in range(count):
            add_bias(rows, at_row, tables, at_weight, score)
            at_row += TURN
            at_weight = uint32(at_weight + uint32(4 * ROW))

    @device_function
    def bias_scores(turning, scale, first_head, stretch, token, tables, score, thread):
        _, _, rows, _, _, fast = turning
        first = stretch.start // TURN
        turned = Turned(first, uint32((stretch.end - 1) // TURN - first + 1), first_head, scale)
        own_row, own_weight = token % TURN, uint32((token // TURN - first) * (4 * GROUP))
        weigh_slow(turning, turned, tables, thread)
        cuda.syncthreads()
        if token < stretch.end:
            add_rows(rows, 2 * fast, POLYNOMIALS, own_row, own_weight, tables, score)
        for pair in range(0, fast, PAIRS):
            count = min(fast - pair, PAIRS)
            cuda.syncthreads()
            weigh_fast(turning, turned, pair, count, tables, thread)
            cuda.syncthreads()
            if token < stretch.end:
                add_rows(rows, 2 * pair, 2 * count, own_row, own_weight, tables, score)

    return bias_scores
