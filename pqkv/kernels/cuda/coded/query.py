"""The query heads of a group in shared memory: in the order of the codebook's channels, and in fp16 for look-ups."""

from numba import float32, int64, uint32, uint64

from pqkv.kernels.cuda.device import bits_of_halves, device_function
from pqkv.kernels.cuda.numbers import number_reader


def load_query(variant):
    """load_query(query, scale, first_head, keys, q, thread): the group's heads times scale, of which the first is
    number `first_head`, into q[head][element] in the order of the codebook's channels.
    """
    D, GROUP, BLOCK = variant.head_dim, variant.group, variant.block
    read = number_reader(variant.query)

    @device_function
    def load_query(query, scale, first_head, keys, q, thread):
        index = thread
        while index < uint32(GROUP * D):
            g, e = uint32(index // uint32(D)), uint32(index % uint32(D))
            channel = int64(keys.channels[uint64(keys.book * D + int64(e))])
            q[index] = read(query, (first_head + int64(g)) * D + channel) * scale
            index = uint32(index + uint32(BLOCK))

    return load_query


def pack_query(variant):
    """pack_query(q, packed, thread): q in fp16x2, [subspace][word][head], in which order a look-up wants it."""
    GROUP, BLOCK, M, D_SUB = variant.group, variant.block, variant.keys.num_subspaces, variant.keys.d_sub
    WORDS, D = variant.keys.centroid_words, M * D_SUB

    @device_function
    def pack_query(q, packed, thread):
        index = thread
        while index < uint32(GROUP * M * WORDS):
            g, m_word = uint32(index % uint32(GROUP)), uint32(index // uint32(GROUP))
            word, m = uint32(m_word % uint32(WORDS)), uint32(m_word // uint32(WORDS))
            at = uint32(g * uint32(D) + m * uint32(D_SUB) + uint32(2) * word)
            upper = q[uint32(at + uint32(1))] if 2 * word + 1 < D_SUB else float32(0.0)
            packed[index] = bits_of_halves(q[at], upper)
            index = uint32(index + uint32(BLOCK))

    return pack_query
