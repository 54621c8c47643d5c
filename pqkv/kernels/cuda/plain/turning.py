"""The bias of scores by position, kept where their weights will be; see `pqkv.kernels.cuda.coded.turning`."""

from numba import cuda, float32, uint64

from pqkv.kernels.cuda.coded.turning import Turned, turn
from pqkv.kernels.cuda.device import device_function
from pqkv.kernels.cuda.plain.variant import ROWS
from pqkv.kernels.turns import BLOCK as TURN
from pqkv.kernels.turns import POLYNOMIALS


def weigh_rows(variant):
    """weigh(turning, turned, row, count, weights, thread): what `count` rows of turns from `row` on are weighted with,
    [row][block][head]: two rows of each fast pair, then a row each for all slow pairs.
    """
    GROUP, BLOCK, BLOCKS = variant.group, variant.block, variant.turned_blocks

    @device_function
    def component(turning, at_turn, at_phasor, pair, polynomial, is_even):
        phasors, middles, _, slow, _, fast = turning
        even, odd = turn(middles, at_turn, phasors, at_phasor)
        found = even if is_even else odd
        if polynomial >= 0:
            found *= slow[uint64((pair - fast) * POLYNOMIALS + polynomial)]
        return found

    @device_function
    def weigh(turning, turned, row, count, weights, thread):
        _, _, _, _, pairs, fast = turning
        for index in range(thread, count * BLOCKS * GROUP, BLOCK):
            g, block, own = index % GROUP, index // GROUP % BLOCKS, row + index // (GROUP * BLOCKS)
            if block < turned.count:
                polynomial = own - 2 * fast  # below 0 a fast pair's
                pair, last = (own // 2, own // 2 + 1) if polynomial < 0 else (fast, pairs)
                is_even = (own if polynomial < 0 else polynomial) % 2 == 0
                total = float32(0.0)
                while pair < last:
                    at_turn = 2 * ((turned.first + block) * pairs + pair)
                    at_phasor = 2 * ((turned.phasors + g) * pairs + pair)
                    total += component(turning, at_turn, at_phasor, pair, polynomial, is_even)
                    pair += 1
                weights[index] = total * turned.scale

    return weigh


def bias_scores(variant):
    """bias_scores(turning, scale, first_head, stretch, turned_weights, scores, thread): the bias of each token of the
    block, times scale, [token][head].
    """
    GROUP, BLOCK, BLOCKS = variant.group, variant.block, variant.turned_blocks
    weigh = weigh_rows(variant)

    @device_function
    def bias_scores(turning, scale, first_head, stretch, turned_weights, scores, thread):
        _, _, rows, _, _, fast = turning
        first = stretch.start // TURN
        turned = Turned(first, (stretch.end - 1) // TURN - first + 1, first_head, scale)
        for t in range(thread, stretch.end - stretch.start, BLOCK):
            for g in range(GROUP):
                scores[t * GROUP + g] = 0.0
        for row in range(0, 2 * fast + POLYNOMIALS, ROWS):
            count = min(2 * fast + POLYNOMIALS - row, ROWS)
            cuda.syncthreads()
            weigh(turning, turned, row, count, turned_weights, thread)
            cuda.syncthreads()
            for t in range(thread, stretch.end - stretch.start, BLOCK):
                token = stretch.start + t
                for i in range(count):
                    within = rows[uint64((row + i) * TURN + token % TURN)]
                    for g in range(GROUP):
                        weight = turned_weights[(i * BLOCKS + token // TURN - first) * GROUP + g]
                        scores[t * GROUP + g] += weight * within

    return bias_scores
