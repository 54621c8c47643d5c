"""Vectors are searched, packed and laid out in pages of codes by one kernel.

A warp takes one subspace and 32 lanes * `tokens` vectors, which it holds in registers; the block's subspaces
are neighbours, so a row of vectors is read in runs of 16 channels (32 bytes in half precision, where channels are in
natural order) and handed over in shared memory. Centroids lie there too, a column for each channel and one of half
norms; all lanes read the same one, and each serves `tokens` vectors. Codes go through shared memory a second time, to
be packed as they lie in the page, rows or transposed; nobody else writes the bytes that a block writes, so there are
no atomics.

What bounds it is arithmetic, not memory: C * d_sub multiply-adds a code, and the minimum. A comparison that remembers
its code costs three instructions of half the rate of a multiply-add, so centroids are taken eight at a time: their
lowest distance by one instruction each, three for which eight it was, and the winning eight are looked at again at the
end. At 4 bits (C = 256, d_sub = 2) that is 3.5 issued instructions a centroid, about 58,000 for a vector of 128
elements, of which 256 bytes are read and 64 written. Its 96 registers let a multiprocessor of an H100 run two blocks of
eight warps: few, but every lane has 4 * `tokens` sums that do not wait for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import cuda, float32, int32, int64, uint16, uint32, uint64

from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.encoding.nearest import load_centroids, search
from pqkv.kernels.cuda.encoding.packing import pack_codes
from pqkv.kernels.cuda.encoding.variant import EncodeVariant
from pqkv.kernels.cuda.encoding.vectors import Pieces, find_pieces, load_vectors


def encode_kernel(variant: EncodeVariant) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (ranges of subspaces * tiles of tokens, KV heads), its block 32 threads
    for each of `subspaces`.

    vectors (B, Hkv, n * page_size, D), bfloat16 as int16; centroids (H, M, C, d_sub) float32; channels (H, D) and
    weights (H, D), or anything where the variant has none; page_ids (B, n); pages (num_pages, Hkv, lines, bytes), bytes
    or 32-bit words as `unit` says; `count` is B * n, `each` n. Ids that are not 0 ... num_pages - 1 write nothing.
    """
    D_SUB, C, S, U, TILE = variant.codes.d_sub, variant.codes.entries, variant.subspaces, variant.tokens, variant.tile
    RANGES, CHUNK, STRIDE, COLUMN = variant.ranges, variant.chunk, variant.stride, variant.column
    VECTORS, TABLE, CODES = S * D_SUB * STRIDE, S * (D_SUB + 1) * COLUMN, S * TILE
    PIECES, HELD = variant.pieces, U * D_SUB
    ALIGNED = None if SIMULATED else 16  # lets centroids be loaded four at a time
    find, load, load_table, compare, pack = (
        part(variant) for part in (find_pieces, load_vectors, load_centroids, search, pack_codes)
    )

    def kernel(
        vectors, centroids, channels, weights, page_ids, pages, count, each, kv_heads, book_heads, num_pages,
    ):  # fmt: skip
        table = cuda.shared.array(TABLE, float32, ALIGNED)
        held = cuda.shared.array(VECTORS, float32)
        codes = cuda.shared.array(CODES, uint16)
        rows = cuda.shared.array(PIECES, int64)
        targets = cuda.shared.array(PIECES, int32)
        lengths = cuda.shared.array(PIECES, int32)
        pieces = Pieces(rows, targets, lengths)
        x = cuda.local.array(HELD, float32)
        best = cuda.local.array(U, float32)
        code = cuda.local.array(U, uint32)

        first_subspace, tile = cuda.blockIdx.x % RANGES * S, cuda.blockIdx.x // RANGES
        kv = cuda.blockIdx.y
        book = int64(min(kv, book_heads - 1))
        thread = cuda.threadIdx.x
        warp, lane = thread // 32, thread % 32
        find(page_ids, tile, count, each, kv_heads, kv, num_pages, pieces, thread)
        cuda.syncthreads()
        load(vectors, channels, weights, book, first_subspace * D_SUB, pieces, held, thread)
        cuda.syncthreads()
        for u in range(U):
            best[u] = math.inf
            code[u] = uint32(0)
            for k in range(D_SUB):
                x[u * D_SUB + k] = held[uint64((warp * D_SUB + k) * STRIDE + u * 32 + lane)]
        for first in range(0, C, CHUNK):
            cuda.syncthreads()
            load_table(centroids, weights, book, first_subspace, first, table, thread)
            cuda.syncthreads()
            compare(table, warp * (D_SUB + 1) * COLUMN, first, x, best, code)
        for u in range(U):
            codes[uint64(warp * TILE + u * 32 + lane)] = uint16(code[u])
        cuda.syncthreads()
        pack(codes, pieces, tile, first_subspace, kv_heads, kv, pages, thread)

    return kernel
