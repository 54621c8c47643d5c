"""What is looked up, in shared memory: centroids as they lie in the codebook, or their sums with the query."""

from numba import cuda, float32, int64, uint32

from pqkv.kernels.cuda.codes import words_of_loads
from pqkv.kernels.cuda.device import (
    bits_of,
    bits_of_halves,
    copy_four,
    device_function,
    finish_copies,
    floats_of_halves,
    words_loader,
)


def copy_centroids(words, block):
    """copy_centroids(centroids, first, tables, thread): `words` words of global memory, no register in between."""

    @device_function
    def copy_centroids(centroids, first, tables, thread):
        index = uint32(thread * uint32(4))
        while index < uint32(words):
            copy_four(centroids, first + int64(index), tables, index)
            index = uint32(index + uint32(4 * block))
        finish_copies()

    return copy_centroids


def build_key_tables(variant):
    """build(centroids, first, stage, q, tables, thread): each centroid of the stage's subspaces times the query of each
    head, float32 of one head or fp16x2 of two; see `CodedVariant.decodes` for what is copied instead.
    """
    KEYS, GROUP, BLOCK = variant.keys, variant.group, variant.block
    D_SUB, CENTROIDS, WORDS = KEYS.d_sub, KEYS.entries, KEYS.centroid_words
    D, STAGE, ENTRY = KEYS.num_subspaces * KEYS.d_sub, variant.stages[0], variant.entry_words
    LOAD, LOADS = words_of_loads(WORDS)
    LOAD_CENTROID, ONE = words_loader(LOAD), GROUP == 1

    @device_function
    def multiply(centroid, q, at, head):
        """With the queries of heads `head` and `head` + 1, which lie from `at` and `at` + D on."""
        first, second = float32(0.0), float32(0.0)
        for pair in range(WORDS):
            lower, upper = floats_of_halves(centroid[pair])
            first += q[at] * lower
            if head + 1 < GROUP:
                second += q[uint32(at + uint32(D))] * lower
            if 2 * pair + 1 < D_SUB:
                first += q[uint32(at + uint32(1))] * upper
                if head + 1 < GROUP:
                    second += q[uint32(at + uint32(D + 1))] * upper
            at = uint32(at + uint32(2))
        return first, second

    @device_function
    def build(centroids, first, stage, q, tables, thread):
        centroid = cuda.local.array(WORDS, uint32)
        index = thread
        source = first + int64(thread) * WORDS
        while index < uint32(STAGE * CENTROIDS):
            for load in range(LOADS):
                LOAD_CENTROID(centroids, source + load * LOAD, centroid, load * LOAD)
            m = uint32(uint32(stage) + index // uint32(CENTROIDS))
            for word in range(ENTRY):
                at = uint32(m * uint32(D_SUB) + uint32(2 * word * D))
                one, other = multiply(centroid, q, at, 2 * word)
                target = uint32(index * uint32(ENTRY) + uint32(word))
                tables[target] = bits_of(one) if ONE else bits_of_halves(one, other)
            index = uint32(index + uint32(BLOCK))
            source += BLOCK * WORDS

    return build


def key_tables(variant):
    """make(centroids, first, stage, q, tables, thread): what is looked up in the subspaces from `stage` on, whose
    centroids begin at word `first`.
    """
    if not variant.decodes:
        return build_key_tables(variant)
    copy = copy_centroids(variant.stages[0] * variant.keys.entries * variant.keys.centroid_words, variant.block)

    @device_function
    def copied(centroids, first, stage, q, tables, thread):
        copy(centroids, first, tables, thread)

    return copied
