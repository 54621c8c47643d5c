"""Coded pages as the kernels see them: a stretch of tokens, one side of it, and the codes of a few subspaces at a time.

Codes of 8 bits are read where they lie, others are unpacked first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from pqkv.kernels.cpu.lookups import ROW, prefetch_lines, prefetch_table
from pqkv.kernels.cpu.unpack import unpack_lines, unpack_rows
from pqkv.vector_code import chosen

_SPAN = 64  # tokens unpacked at once
_AHEAD = 2  # pages between the one whose codes are asked for and the one that is read


class Side(NamedTuple):
    """Coded keys or values; the last six are tags (`vector_code.tag`)."""

    pages: np.ndarray  # flat, uint8
    line: int  # bytes of the codes of a subspace (transposed) or of a token (row) in a page
    centroids: np.ndarray  # (H, M, C, d_sub) float32
    channels: np.ndarray  # (H, D): coded element -> channel
    unpacked: tuple[int, ...]  # bytes of an unpacked code, 0 where codes are read where they lie
    d_sub: tuple[int, ...]
    block: tuple[int, ...]  # J, subspaces taken at a time; divides M
    nbits: tuple[int, ...]  # 8, or 0 for any other width
    order: tuple[int, ...]  # see `lookups`
    way: tuple[int, ...]  # what a code looks up; see `coded`


class Stretch(NamedTuple):
    """Tokens of one sequence and KV head that are one unit of work."""

    table: np.ndarray  # (max_pages,): page ids of the sequence
    page_size: int
    num_kv_heads: int
    head: int
    first_page: int  # index into `table`
    length: int  # tokens, from the first of `first_page` on


@register_jitable
def own_centroids(side, head):
    """Which codebook of the H serves a KV head, and its centroids, flat (M * C * d_sub)."""
    H, M, C = side.centroids.shape[:3]
    own, size = head % H, M * C * len(side.d_sub)
    return own, side.centroids.reshape(-1)[own * size : (own + 1) * size]


@register_jitable
def prefetch_block(side, book, m):
    """Ask for the centroids of the J subspaces from m on; past the last there is nothing to ask for."""
    M, C = side.centroids.shape[1:3]
    prefetch_table(book, m * C * len(side.d_sub), min(len(side.block), M - m) * C * len(side.d_sub))


@chosen
def codes_at(scratch, stretch, side, m, start):
    """Codes of J subspaces from m on and the tokens from `start` on that lie in one page: (array, where they start,
    stride, how many tokens).
    """
    types = Side._make(side)
    transposed = len(types.order) != ROW
    if not len(types.unpacked):
        return _lines_in_place if transposed else _rows_in_place
    return _lines_unpacked if transposed else _rows_unpacked


@chosen
def scratch_of(side):
    """Room for the unpacked codes of a block; unused where codes are read where they lie."""
    types = Side._make(side)
    if not len(types.unpacked):
        return lambda side: side.pages
    kind = np.uint8 if len(types.unpacked) == 1 else np.uint16
    return lambda side: np.empty(8 * _SPAN, kind)


@register_jitable
def _place(stretch, index):
    """Which part of all pages, of one page and KV head each, holds this head in the page at `index` of the table."""
    return np.int64(stretch.table[index]) * stretch.num_kv_heads + stretch.head


def _lines_in_place(scratch, stretch, side, m, start):
    page_size, M = stretch.page_size, side.centroids.shape[1]
    index = stretch.first_page + start // page_size
    later = min(index + _AHEAD, stretch.first_page + (stretch.length - 1) // page_size)
    prefetch_lines(side.pages, (_place(stretch, later) * M + m) * side.line, side.line, side.block)
    return side.pages, (_place(stretch, index) * M + m) * side.line, side.line, min(page_size, stretch.length - start)


def _rows_in_place(scratch, stretch, side, m, start):
    page_size = stretch.page_size
    base = _place(stretch, stretch.first_page + start // page_size) * page_size * side.line
    return side.pages, base + m, side.line, min(page_size, stretch.length - start)


def _lines_unpacked(scratch, stretch, side, m, start):
    M, C = side.centroids.shape[1:3]
    base = _place(stretch, stretch.first_page + start // stretch.page_size) * M * side.line
    slot = start % stretch.page_size
    n = min(_SPAN, stretch.page_size - slot, stretch.length - start)
    unpack_lines(side.pages, base, side.line, m, len(side.block), slot, n, _width(C), _SPAN, scratch)
    return scratch, 0, _SPAN, n


def _rows_unpacked(scratch, stretch, side, m, start):
    C = side.centroids.shape[2]
    slot = start % stretch.page_size
    place = _place(stretch, stretch.first_page + start // stretch.page_size) * stretch.page_size + slot
    n = min(_SPAN, stretch.page_size - slot, stretch.length - start)
    unpack_rows(side.pages, place * side.line, side.line, m, len(side.block), n, _width(C), scratch)
    return scratch, 0, 8, n


@register_jitable
def _width(entries):
    """Bits of a code that names one of `entries` (a power of 2)."""
    nbits = 0
    while entries > 1:
        entries >>= 1
        nbits += 1
    return nbits
