"""Weights of values times the values' gains, over the largest product of the block: what is kept in fp16 spans whatever
octaves gains do.
"""

from numba import cuda, float32, int64, uint32, uint64

from pqkv.kernels.cuda.coded.softmax import meeting_step
from pqkv.kernels.cuda.codes import words_of_loads
from pqkv.kernels.cuda.device import bits_of, device_function, float_of, words_loader
from pqkv.kernels.cuda.paging import page_of_token
from pqkv.kernels.cuda.warps import warp_max

_LEAST_PEAK = 2.0**-100  # where all products are zero: something to divide them by


def multiply_gains(variant):
    """multiply(gains, paging, token, end, score): each weight with its token's gain."""
    GROUP, TOKENS = variant.group, variant.key_tokens
    WORDS = TOKENS // 4
    LOAD, LOADS = words_of_loads(WORDS)
    load_gains = words_loader(LOAD)

    @device_function
    def multiply(gains, paging, token, end, score):
        stored, values = gains
        bytes_ = cuda.local.array(WORDS, uint32)
        number, inside = page_of_token(paging, token)
        page = int64(paging.table[uint64(paging.row + number)])
        place = ((page * paging.kv_heads + paging.kv) * paging.size + inside) // 4
        for w in range(LOADS):
            load_gains(stored, place + w * LOAD, bytes_, w * LOAD)
        for j in range(TOKENS):
            byte = uint32(bytes_[j // 4] >> uint32(8 * (j % 4))) & uint32(255)
            # what lies past the end has weight 0, whatever its byte stands for
            gain = values[uint64(paging.kv * 256 + int64(byte))] if token + j < end else float32(0.0)
            for g in range(GROUP):
                score[j * GROUP + g] *= gain

    return multiply


def apply_gains(variant):
    """apply_gains(gains, paging, token, end, score, weights, peaks, thread): scores become products over the largest of
    the block, which goes to `peaks` for each head. Threads meet in `weights`, and nobody reads it any more.
    """
    GROUP, BLOCK, TOKENS = variant.group, variant.block, variant.key_tokens
    FULL, STEP = variant.full_warps, meeting_step(variant)
    multiply = multiply_gains(variant)

    @device_function
    def largest(score, g):
        peak = float32(_LEAST_PEAK)
        for j in range(TOKENS):
            peak = max(peak, abs(score[j * GROUP + g]))
        return warp_max(peak) if FULL else peak

    @device_function
    def apply_gains(gains, paging, token, end, score, weights, peaks, thread):
        if token < end:
            multiply(gains, paging, token, end, score)
        for g in range(GROUP):
            weights[uint32(thread * uint32(GROUP) + uint32(g))] = bits_of(largest(score, g))
        cuda.syncthreads()
        for g in range(GROUP):
            peak = float32(_LEAST_PEAK)
            for other in range(0, BLOCK, STEP):
                peak = max(peak, float_of(weights[other * GROUP + g]))
            shrink = float32(1.0) / peak
            for j in range(TOKENS):
                score[j * GROUP + g] *= shrink
            if thread == 0:
                peaks[g] = peak
        cuda.syncthreads()

    return apply_gains
