"""How a kernel ends that is timed up to one of its phases: a word of every thread goes where values would, so that no
phase is left out as useless.
"""

from numba import cuda, float32, int64, uint32, uint64

from pqkv.kernels.cuda.device import bits_of, device_function, float_of


def end_with(variant):
    """end(score, shared, partial, thread): after the `last` phase of the variant."""
    ends = {"tables": end_with_tables, "scores": end_with_scores}
    return ends.get(variant.last, end_with_softmax)(variant)


def end_with_tables(variant):
    """After the tables of all stages."""
    TABLE, PACKED, DECODES = variant.table_words, variant.packed_words, variant.decodes
    leave = leave_word(variant)

    @device_function
    def end(score, shared, partial, thread):
        total = float_of(shared.tables[uint32(thread % uint32(TABLE))])
        if DECODES:
            total += float_of(shared.packed[uint32(thread % uint32(PACKED))])
        leave(total, shared, partial, thread)

    return end


def end_with_scores(variant):
    """After the scores."""
    SCORES = variant.key_tokens * variant.group
    leave = leave_word(variant)

    @device_function
    def end(score, shared, partial, thread):
        total = float32(0.0)
        for i in range(SCORES):
            total += score[i]
        leave(total, shared, partial, thread)

    return end


def leave_word(variant):
    """leave(word, shared, partial, thread): through the arrays of the phases to come, so that as many blocks run at a
    time as of the whole kernel.
    """
    BLOCK, D = variant.block, variant.head_dim

    @device_function
    def leave(word, shared, partial, thread):
        shared.weights[thread] = bits_of(word)
        shared.meeting[thread] = word
        cuda.syncthreads()
        neighbour = uint32(uint32(thread + uint32(1)) % uint32(BLOCK))
        moved = float_of(shared.weights[neighbour]) + shared.meeting[neighbour]
        partial.data[uint64(partial.at + int64(thread) % D)] = moved

    return leave


def end_with_softmax(variant):
    """After the weights."""
    WEIGHTS, D = variant.weight_room, variant.head_dim

    @device_function
    def end(score, shared, partial, thread):
        word = float_of(shared.weights[uint32(uint32(WEIGHTS - 1) - thread)])
        partial.data[uint64(partial.at + int64(thread) % D)] = word

    return end
