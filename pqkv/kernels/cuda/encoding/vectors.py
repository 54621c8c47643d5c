"""A block's vectors in shared memory, a column for each channel; a tile of them is cut into pieces, of a page each."""

from typing import Any, NamedTuple

from numba import float32, int32, int64, uint32, uint64

from pqkv.kernels.cuda.device import device_function, float_of


class Pieces(NamedTuple):
    """Of each piece in shared memory: its first vector among all, the page that it goes to, or -1, and its tokens."""

    rows: Any
    targets: Any
    lengths: Any


def find_pieces(variant):
    """find(page_ids, tile, count, each, kv_heads, kv, num_pages, pieces, thread): the pieces of a tile, of no tokens
    where there is no page of that number.
    """
    P, PIECE, BLOCK = variant.page_size, variant.piece, variant.block
    PIECES, CUTS = variant.pieces, variant.cuts

    @device_function
    def find(page_ids, tile, count, each, kv_heads, kv, num_pages, pieces, thread):
        for piece in range(thread, PIECES, BLOCK):
            number = int64(tile) * PIECES + piece
            page, start = number // CUTS, number % CUTS * PIECE
            target = int64(-1)
            if page < count:
                target = int64(page_ids[uint64(page)])
            known = target >= 0 and target < num_pages
            pieces.rows[piece] = ((page // each * kv_heads + kv) * each + page % each) * P + start
            pieces.targets[piece] = int32(target) if known else int32(-1)
            pieces.lengths[piece] = int32(min(PIECE, P - start)) if known else int32(0)

    return find


def load_vectors(variant):
    """load(vectors, channels, weights, book, first, pieces, held, thread): the channels of the block's subspaces, from
    channel `first` of the codebook `book` on, times their weights, less than 0: what centroids are multiplied with.
    """
    D, BLOCK, TILE, PIECE = variant.head_dim, variant.block, variant.tile, variant.piece
    PIECES, STRIDE, CHANNELS = variant.pieces, variant.stride, variant.subspaces * variant.codes.d_sub
    PERMUTED, WEIGHTED, BFLOAT = variant.permuted, variant.weighted, variant.dtype == "bfloat16"

    @device_function
    def float_at(vectors, source):
        if BFLOAT:
            return float_of(uint32(int32(vectors[uint64(source)]) & 0xFFFF) << uint32(16))
        return float32(vectors[uint64(source)])

    @device_function
    def load(vectors, channels, weights, book, first, pieces, held, thread):
        for index in range(thread, TILE * CHANNELS, BLOCK):
            channel, token = index % CHANNELS, index // CHANNELS
            piece, inside = token // PIECE, token % PIECE
            place_in_book = book * D + first + channel
            value = float32(0.0)
            if piece < PIECES and first + channel < D and inside < pieces.lengths[piece]:
                source = int64(channels[uint64(place_in_book)]) if PERMUTED else int64(first + channel)
                value = float_at(vectors, source + (pieces.rows[piece] + inside) * D)
                if WEIGHTED:
                    value *= weights[uint64(place_in_book)]
            held[uint64(channel * STRIDE + token)] = -value

    return load
