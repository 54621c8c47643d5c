"""Scores of a block's tokens, their softmax and the mixed values, tokens or subspaces dealt out to threads."""

from numba import cuda, float32, int64, uint64

from pqkv.kernels.cuda.code_bytes import code_in_page
from pqkv.kernels.cuda.device import LOWEST, device_function, power_of_two
from pqkv.kernels.cuda.numbers import number_reader
from pqkv.kernels.cuda.paging import page_of_token


def load_query(variant):
    """load(query, scale, first_head, keys, q, thread): q[head][element] times scale, in the order of the codebook's
    channels.
    """
    D, GROUP, BLOCK = variant.head_dim, variant.group, variant.block
    read = number_reader(variant.query)

    @device_function
    def load(query, scale, first_head, keys, q, thread):
        for index in range(thread, GROUP * D, BLOCK):
            channel = int64(keys.channels[uint64(keys.book * D + index % D)])
            q[index] = read(query, (first_head + index // D) * D + channel) * scale

    return load


def score_keys(variant):
    """score_keys(keys, paging, stretch, q, weights, thread): scores of all tokens, [token][head], to the bias where
    that is there.
    """
    KEYS, GROUP, BLOCK, D, TURNING = variant.keys, variant.group, variant.block, variant.head_dim, variant.turning
    M, C, D_SUB = KEYS.num_subspaces, KEYS.entries, KEYS.d_sub
    code_of = code_in_page(KEYS)

    @device_function
    def score_keys(keys, paging, stretch, q, weights, thread):
        score = cuda.local.array(GROUP, float32)
        for t in range(thread, stretch.end - stretch.start, BLOCK):
            number, slot = page_of_token(paging, stretch.start + t)
            page = int64(paging.table[uint64(paging.row + number)])
            for g in range(GROUP):
                score[g] = weights[t * GROUP + g] if TURNING else float32(0.0)
            for m in range(M):
                code = code_of(keys.codes, paging, page, slot, m)
                source = ((int64(keys.book) * M + m) * C + int64(code)) * D_SUB
                for e in range(D_SUB):
                    c = keys.centroids[uint64(source + e)]
                    for g in range(GROUP):
                        score[g] += q[g * D + m * D_SUB + e] * c
            for g in range(GROUP):
                weights[t * GROUP + g] = score[g]

    return score_keys


def softmax(variant):
    """softmax(tokens, weights, meeting, partial, thread): scores of so many tokens -> 2**(score - maximum); maxima and
    sums go to `partial`.
    """
    GROUP, BLOCK, D = variant.group, variant.block, variant.head_dim

    @device_function
    def softmax(tokens, weights, meeting, partial, thread):
        for g in range(GROUP):
            top = float32(LOWEST)
            for t in range(thread, tokens, BLOCK):
                top = max(top, weights[t * GROUP + g])
            meeting[thread * GROUP + g] = top
        cuda.syncthreads()
        for g in range(GROUP):
            top = float32(LOWEST)
            for other in range(BLOCK):
                top = max(top, meeting[other * GROUP + g])
            for t in range(thread, tokens, BLOCK):
                weights[t * GROUP + g] = power_of_two(weights[t * GROUP + g] - top)
            if thread == 0:
                partial.data[uint64(partial.at + g * partial.step + D)] = top
        cuda.syncthreads()
        for g in range(thread, GROUP, BLOCK):
            mass = float32(0.0)
            for t in range(tokens):
                mass += weights[t * GROUP + g]
            partial.data[uint64(partial.at + g * partial.step + D + 1)] = mass

    return softmax


def apply_gains(variant):
    """apply_gains(gains, paging, stretch, weights, thread): each weight times its token's gain."""
    GROUP, BLOCK = variant.group, variant.block

    @device_function
    def apply_gains(gains, paging, stretch, weights, thread):
        stored, values = gains
        for t in range(thread, stretch.end - stretch.start, BLOCK):
            number, slot = page_of_token(paging, stretch.start + t)
            page = int64(paging.table[uint64(paging.row + number)])
            place = (page * paging.kv_heads + paging.kv) * paging.size + slot
            gain = values[uint64(paging.kv * 256 + int64(stored[uint64(place)]))]
            for g in range(GROUP):
                weights[t * GROUP + g] *= gain

    return apply_gains


def mix_values(variant):
    """mix_values(values, paging, stretch, weights, partial, thread): a thread takes a subspace for one head."""
    VALUES, GROUP, BLOCK, D = variant.values, variant.group, variant.block, variant.head_dim
    M, C, D_SUB = VALUES.num_subspaces, VALUES.entries, VALUES.d_sub
    code_of = code_in_page(VALUES)

    @device_function
    def mix_values(values, paging, stretch, weights, partial, thread):
        acc = cuda.local.array(D_SUB, float32)
        for index in range(thread, M * GROUP, BLOCK):
            m, g = index // GROUP, index % GROUP
            for e in range(D_SUB):
                acc[e] = 0.0
            for t in range(stretch.end - stretch.start):
                number, slot = page_of_token(paging, stretch.start + t)
                page = int64(paging.table[uint64(paging.row + number)])
                code = code_of(values.codes, paging, page, slot, m)
                source = ((int64(values.book) * M + m) * C + int64(code)) * D_SUB
                for e in range(D_SUB):
                    acc[e] += weights[t * GROUP + g] * values.centroids[uint64(source + e)]
            for e in range(D_SUB):
                channel = int64(values.channels[uint64(values.book * D + m * D_SUB + e)])
                partial.data[uint64(partial.at + g * partial.step + channel)] = acc[e]

    return mix_values
