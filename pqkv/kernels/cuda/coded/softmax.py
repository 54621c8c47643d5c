"""Scores of a block's tokens -> weights relative to the block's largest score, in fp16 in shared memory."""

from numba import cuda, float32, uint32, uint64

from pqkv.kernels.cuda.device import LOWEST, bits_of_halves, device_function, power_of_two
from pqkv.kernels.cuda.warps import warp_max, warp_sum


def softmax_tile(variant):
    """softmax_tile(score, token, stretch, meeting, partial, thread): scores of the thread's tokens, the first of which
    is `token`, become 2**(score - maximum), 0 where hidden or past the end. The maximum of each head goes to `partial`,
    sums by warps (or threads, see `meeting_step`) to `meeting`.
    """
    GROUP, BLOCK, TOKENS, D = (
        variant.group,
        variant.block,
        variant.key_tokens,
        variant.head_dim,
    )
    FULL, STEP = variant.full_warps, meeting_step(variant)

    @device_function
    def highest(score, g, token, stretch):
        top = float32(LOWEST)
        for j in range(TOKENS):
            if token + j < stretch.low or token + j >= stretch.end:
                score[j * GROUP + g] = LOWEST
            top = max(top, score[j * GROUP + g])
        return warp_max(top) if FULL else top

    @device_function
    def raise_to_powers(score, g, top):
        for j in range(TOKENS):
            hidden = score[j * GROUP + g] <= float32(0.5 * LOWEST)  # NaN is not
            score[j * GROUP + g] = float32(0.0) if hidden else power_of_two(score[j * GROUP + g] - top)

    @device_function
    def mass_of(score, g):
        mass = float32(0.0)
        for j in range(TOKENS):
            mass += score[j * GROUP + g]
        return warp_sum(mass) if FULL else mass

    @device_function
    def softmax_tile(score, token, stretch, meeting, partial, thread):
        for g in range(GROUP):
            meeting[uint32(thread * uint32(GROUP) + uint32(g))] = highest(score, g, token, stretch)
        cuda.syncthreads()
        for g in range(GROUP):
            top = float32(LOWEST)
            for other in range(0, BLOCK, STEP):
                top = max(top, meeting[other * GROUP + g])
            raise_to_powers(score, g, top)
            if thread == 0:
                partial.data[uint64(partial.at + g * partial.step + D)] = top
        cuda.syncthreads()
        for g in range(GROUP):
            meeting[uint32(thread * uint32(GROUP) + uint32(g))] = mass_of(score, g)

    return softmax_tile


def meeting_step(variant):
    """Threads between those whose results in shared memory make up the block's: warps have exchanged theirs, if all
    their lanes exist.
    """
    return 32 if variant.full_warps else 1


def keep_weights(variant):
    """keep_weights(score, weights, thread): weights of the thread's tokens in fp16, [token][word], two heads a word or
    one head twice.
    """
    GROUP, TOKENS, WORDS = variant.group, variant.key_tokens, variant.weight_words

    @device_function
    def keep_weights(score, weights, thread):
        for j in range(TOKENS):
            for w in range(WORDS):
                lower = score[j * GROUP + 2 * w]
                upper = lower if GROUP == 1 else (score[j * GROUP + 2 * w + 1] if 2 * w + 1 < GROUP else float32(0.0))
                target = uint32((thread * uint32(TOKENS) + uint32(j)) * uint32(WORDS) + uint32(w))
                weights[target] = bits_of_halves(lower, upper)

    return keep_weights


def write_masses(variant):
    """write_masses(meeting, partial): the sums of weights of each head, for one thread to do."""
    GROUP, BLOCK, D = variant.group, variant.block, variant.head_dim
    STEP = meeting_step(variant)

    @device_function
    def write_masses(meeting, partial):
        for g in range(GROUP):
            mass = float32(0.0)
            for other in range(0, BLOCK, STEP):
                mass += meeting[other * GROUP + g]
            partial.data[uint64(partial.at + g * partial.step + D + 1)] = mass

    return write_masses
