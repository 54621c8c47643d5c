"""Which tokens a block reads, where they and their codes lie, and where its results go: the same in every kernel on
codes.
"""

from typing import Any, NamedTuple

from numba import cuda, int32, uint64

from pqkv.kernels.cuda.device import device_function


class Paging(NamedTuple):
    """The page table of a sequence (its row begins at `row` of the flat `table`), pages of `size` tokens (`shift` is
    log2 of it, or -1) and the KV head that is read of `kv_heads`.
    """

    table: Any
    row: Any
    size: Any
    shift: Any
    kv_heads: Any
    kv: Any


class Coded(NamedTuple):
    """Keys or values: codes in pages, whose lines have `line` words or bytes; centroids and order of channels, of which
    those of head `book` are read.
    """

    codes: Any
    centroids: Any
    channels: Any
    book: Any
    line: Any


class Stretch(NamedTuple):
    """The tokens start ... end - 1, of which those below `low` are hidden."""

    low: Any
    start: Any
    end: Any


class Partial(NamedTuple):
    """Where partial results go: those of the first query head begin at `at`, of the next `step` further on."""

    data: Any
    at: Any
    step: Any


@device_function
def page_of_token(paging, token):
    """(place in the row of the table, token in the page)."""
    # a division takes as long as ten look-ups
    number = token >> paging.shift if paging.shift >= 0 else token // paging.size
    return number, token - number * paging.size


def heads_of_blocks(variant):
    """heads_of(sequence, kv_heads, chunks, heads): (the first query head of a block among those of all sequences, the
    first row of its partial results). Where groups are `uneven` the last block of the `heads` of a KV head begins
    earlier and computes some once more; rows are a block's own, and the merge leaves out the second of two.
    """
    GROUP = variant.group

    @device_function
    def even(sequence, kv_heads, chunks, _heads):
        first = sequence * (kv_heads * chunks * GROUP) + cuda.blockIdx.y * GROUP
        return first, first

    @device_function
    def uneven(sequence, kv_heads, chunks, heads):
        kv, chunk = cuda.blockIdx.y // chunks, cuda.blockIdx.y % chunks
        first = (sequence * kv_heads + kv) * heads + min(chunk * GROUP, heads - GROUP)
        return first, sequence * (kv_heads * chunks * GROUP) + cuda.blockIdx.y * GROUP

    return uneven if variant.uneven else even


def stretch_of_block(together):
    """stretch(lengths, sequence, sequences, window, split, share): the `Stretch` that a block reads. Where a window
    begins it is read from the multiple of `together` before.
    """

    @device_function
    def stretch(lengths, sequence, sequences, window, split, share):
        length, residual = lengths[sequences + sequence], lengths[2 * sequences + sequence]
        low = int32(0)
        if window > 0:
            low = min(max(length + residual - window, 0), length)
        start = low // together * together + split * share
        return Stretch(low, start, min(start + share, length))

    return stretch


def no_tokens(group, head_dim, block):
    """leave_empty(partial, thread): sums of 0, by which a merge knows that a block had no tokens."""

    @device_function
    def leave_empty(partial, thread):
        for g in range(thread, group, block):
            partial.data[uint64(partial.at + g * partial.step + head_dim + 1)] = 0.0

    return leave_empty
