"""Vector code for attention on exact vectors: scores of keys, and sums of values, of all heads of a group at once.

A register of keys or values is loaded and widened once and meets the G queries or weights that share it. Keys: a tile
of a few tokens, so that as many sums are under way as the processor needs, and queries are loaded once a tile. Values:
a column of the output stays in registers while the tokens pass by. Everything takes llvmlite's builder and pointers, so
it can be compiled for any processor (tests count its instructions).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from pqkv.kernels.cpu.exact_form import BFLOAT16, FLOAT16, FLOAT32, Form, Piece, Row, key_row, value_row
from pqkv.vector_code import (
    I16,
    I32,
    I64,
    add_product,
    constant,
    floats,
    number,
    prefetch,
    shuffle,
    splat,
    store,
    variable,
    vector,
)

_LINE = 64  # bytes of a cache line
_MOST_HEADS = 8  # of a group whose scores are taken at once


@dataclass(frozen=True, slots=True)
class Rows:
    """`count` rows of `length` numbers of `size` bytes, one after another from `start` on. While they are read, those
    from `ahead` on are asked for.
    """

    start: Any
    length: Any
    count: Any
    ahead: Any
    size: int

    def at(self, builder: Any, index: Any) -> Any:
        """Pointer to a row; past the last, to the last."""
        last = builder.sub(self.count, I64(1))
        index = builder.select(builder.icmp_unsigned("<", index, last), index, last)
        return builder.gep(self.start, [builder.mul(index, self.length)])

    def prefetch(self, builder: Any, first: Any, count: int) -> None:
        """Ask for `count` numbers, `first` ahead."""
        start = builder.gep(self.ahead, [first])
        for at in range(0, count, _LINE // self.size):
            prefetch(builder, builder.gep(start, [I64(at)]), 2)


def emit_scores(
    builder: Any, form: Form, kind: int, rest: int, heads: int, scores: Any, query: Any, rows: Rows
) -> None:
    """scores[t * heads + g] = query g times row t, t < count > 0. `query` holds register v of head g from
    (v * heads + g) * lanes on. Scores of 15 more tokens are written too, of which there is nothing to know.
    """
    L, row = form.lanes, key_row(rest, kind, form)

    def products(sums: list[Any], place: Any, tokens: list[Any], piece: Piece, first: int, block: int) -> None:
        """Add what a piece of each token's row brings; `place` is where its first register of the queries begins."""
        keys = [widened(builder, form, kind, token, piece) for token in tokens]
        for i in range(len(piece.vectors)):
            for g in range(block):
                own = vector(builder, query, builder.add(place, I64((i * heads + first + g) * L)), L)
                for k in range(len(tokens)):
                    add_to(builder, sums[k * block + g], keys[k][i], own)

    emit_tiles(builder, form, row, heads, L * heads, scores, rows, products)


Products = Callable[[list[Any], Any, list[Any], Piece, int, int], None]


def emit_tiles(
    builder: Any, form: Form, row: Row, heads: int, step: int, scores: Any, rows: Rows, products: Products
) -> None:
    """Scores by what `products` adds up; of a register of keys `step` numbers of queries are asked for."""
    for first, block in head_blocks(heads):
        tile = tile_of(block, form)
        turns = builder.udiv(builder.add(rows.count, I64(tile - 1)), I64(tile))
        with cgutils.for_range(builder, turns) as loop:
            place = builder.mul(loop.index, I64(tile))
            tokens = [rows.at(builder, builder.add(place, I64(k))) for k in range(tile)]
            none = constant(floats(form.lanes), [0.0] * form.lanes)
            sums = [variable(builder, none) for _ in range(tile * block)]
            pieces = builder.udiv(rows.length, I64(row.full.width))
            with cgutils.for_range(builder, pieces) as each:
                start = builder.mul(each.index, I64(row.full.width))
                own = [builder.gep(token, [start]) for token in tokens]
                products(sums, builder.mul(each.index, I64(len(row.full.vectors) * step)), own, row.full, first, block)
                if first == 0:
                    here = builder.add(builder.mul(place, rows.length), builder.mul(start, I64(tile)))
                    rows.prefetch(builder, here, tile * row.full.width)
            start = builder.mul(pieces, I64(row.full.width))
            place_of_rest = builder.mul(pieces, I64(len(row.full.vectors) * step))
            for piece in row.rest:
                own = [builder.gep(token, [start]) for token in tokens]
                products(sums, place_of_rest, own, piece, first, block)
                start = builder.add(start, I64(piece.width))
                place_of_rest = builder.add(place_of_rest, I64(len(piece.vectors) * step))
            store_totals(builder, [builder.load(total) for total in sums], scores, place, first, block, heads)


def emit_values(
    builder: Any, form: Form, kind: int, rest: int, heads: int, sums: Any, weights: Any, rows: Rows
) -> None:
    """sums += weights[t * heads + g] * row t, all t < count: register v of head g stands from (v * heads + g) * lanes
    on.
    """
    L = form.lanes

    def add(totals: list[list[Any]], start: Any, column: Sequence[Piece], first: int, block: int) -> None:
        with cgutils.for_range(builder, rows.count) as loop:
            row = builder.gep(rows.start, [builder.add(builder.mul(loop.index, rows.length), start)])
            at = builder.mul(loop.index, I64(heads))
            values = []
            for piece in column:
                values += widened(builder, form, kind, row, piece)
                row = builder.gep(row, [I64(piece.width)])
            for g in range(block):
                mass = splat(builder, number(builder, weights, builder.add(at, I64(first + g))), L)
                for i, value in enumerate(values):
                    add_to(builder, totals[i][g], mass, value)
            if first == 0:
                width = sum(piece.width for piece in column)
                here = builder.add(builder.mul(start, rows.count), builder.mul(loop.index, I64(width)))
                rows.prefetch(builder, here, width)

    emit_columns(builder, form, value_row(rest, kind, form), heads, sums, rows, add)


AddColumn = Callable[[list[list[Any]], Any, Sequence[Piece], int, int], None]


def emit_columns(builder: Any, form: Form, row: Row, heads: int, sums: Any, rows: Rows, add: AddColumn) -> None:
    """Sums of values, a column of a few pieces of all rows at a time; `add` brings its rows to the sums."""
    L = form.lanes
    together = max(1, form.sums // (value_blocks(heads, form)[0][1] * len(row.full.vectors)))

    def one(start: Any, place: Any, column: Sequence[Piece]) -> None:
        """The column from number `start` of a row on, whose sums lie from `place` on."""
        width = sum(len(piece.vectors) for piece in column)
        for first, block in value_blocks(heads, form):
            places = [
                [builder.add(place, I64((i * heads + first + g) * L)) for g in range(block)] for i in range(width)
            ]
            totals = [[variable(builder, vector(builder, sums, at, L)) for at in own] for own in places]
            add(totals, start, column, first, block)
            for i in range(width):
                for g in range(block):
                    store(builder, builder.load(totals[i][g]), sums, places[i][g])

    pieces = builder.udiv(rows.length, I64(row.full.width))
    whole = builder.udiv(pieces, I64(together))
    step = len(row.full.vectors) * heads * L
    with cgutils.for_range(builder, whole) as loop:
        start = builder.mul(loop.index, I64(together * row.full.width))
        one(start, builder.mul(loop.index, I64(together * step)), [row.full] * together)
    done = builder.mul(whole, I64(together))
    if together > 1:
        with cgutils.for_range(builder, builder.sub(pieces, done)) as loop:
            piece = builder.add(done, loop.index)
            one(builder.mul(piece, I64(row.full.width)), builder.mul(piece, I64(step)), [row.full])
    start, place = builder.mul(pieces, I64(row.full.width)), builder.mul(pieces, I64(step))
    for piece in row.rest:
        one(start, place, [piece])
        start = builder.add(start, I64(piece.width))
        place = builder.add(place, I64(len(piece.vectors) * heads * L))


def head_blocks(heads: int) -> list[tuple[int, int]]:
    """(first, how many) heads that are served at once."""
    return _blocks(heads, _MOST_HEADS)


def value_blocks(heads: int, form: Form) -> list[tuple[int, int]]:
    """(first, how many) heads whose sums of two registers of values stay in registers."""
    return _blocks(heads, max(1, form.sums // 2))


def _blocks(count: int, most: int) -> list[tuple[int, int]]:
    blocks = -(-count // most)
    return [(a, b - a) for a, b in pairwise(count * i // blocks for i in range(blocks + 1))]


def tile_of(block: int, form: Form) -> int:
    """Tokens whose keys meet the queries at once: a power of two."""
    return 1 << max(1, form.sums // block).bit_length() - 1


def widened(builder: Any, form: Form, kind: int, row: Any, piece: Piece) -> list[Any]:
    """The registers of float32 that a piece of a row becomes."""
    L, width = form.lanes, piece.width
    if kind == FLOAT32:
        return [_filled(builder, vector(builder, row, I64(0), width), L)]
    if kind == BFLOAT16 and width == 2 * L:
        pairs = _load(builder, row, ir.VectorType(I32, L))
        even = builder.shl(pairs, constant(pairs.type, [16] * L))
        odd = builder.and_(pairs, constant(pairs.type, [0xFFFF0000] * L))
        return [builder.bitcast(half, floats(L)) for half in (even, odd)]
    if kind == FLOAT16 and form.converts:
        halves = _load(builder, row, ir.VectorType(ir.HalfType(), width))
        return [_filled(builder, builder.fpext(halves, floats(width)), L)]
    words = builder.zext(_load(builder, row, ir.VectorType(I16, width)), ir.VectorType(I32, width))
    if kind == FLOAT16:
        return [_filled(builder, _float_of_half(builder, words, width), L)]
    words = builder.shl(words, constant(words.type, [16] * width))
    return [_filled(builder, builder.bitcast(words, floats(width)), L)]


def _load(builder: Any, row: Any, kind: Any) -> Any:
    return builder.load(builder.bitcast(row, kind.as_pointer()), align=2)


def _float_of_half(builder: Any, half: Any, width: int) -> Any:
    """Half precision, in words, without an instruction for it: the 15 bits beside the sign where float32 has them, and
    the exponents differ by 112; infinity and NaN keep theirs.
    """

    def same(value: int) -> Any:
        return constant(half.type, [value] * width)

    magnitude = builder.shl(builder.and_(half, same(0x7FFF)), same(13))
    scaled = builder.fmul(builder.bitcast(magnitude, floats(width)), constant(floats(width), [2.0**112] * width))
    special = builder.icmp_unsigned(">=", magnitude, same(0x7C00 << 13))
    bits = builder.select(special, builder.or_(magnitude, same(0x7F800000)), builder.bitcast(scaled, half.type))
    sign = builder.shl(builder.and_(half, same(0x8000)), same(16))
    return builder.bitcast(builder.or_(bits, sign), floats(width))


def _filled(builder: Any, value: Any, lanes: int) -> Any:
    """A vector of `lanes`, zeros behind what there is."""
    width = value.type.count
    if width == lanes:
        return value
    places = [*range(width), *[width] * (lanes - width)]
    zeros = constant(value.type, [0.0] * width)
    return builder.shuffle_vector(value, zeros, constant(ir.VectorType(I32, lanes), places))


def add_to(builder: Any, total: Any, a: Any, b: Any) -> None:
    """The variable `total` += a * b."""
    builder.store(add_product(builder, a, b, builder.load(total)), total)


def store_totals(
    builder: Any, sums: Sequence[Any], scores: Any, place: Any, first: int, block: int, heads: int
) -> None:
    """scores[(place + k) * heads + first + g] = all lanes of sums[k * block + g] together."""
    totals = _totals(builder, sums)
    if block == heads:
        target = builder.mul(place, I64(heads))
        for i, total in enumerate(totals):
            store(builder, total, scores, builder.add(target, I64(i * totals[0].type.count)))
        return
    L = totals[0].type.count
    for k in range(len(sums) // block):
        target = builder.add(builder.mul(builder.add(place, I64(k)), I64(heads)), I64(first))
        for g in range(block):
            i = k * block + g
            lane = builder.extract_element(totals[i // L], I32(i % L))
            builder.store(lane, builder.gep(scores, [builder.add(target, I64(g))]), align=4)


def _totals(builder: Any, sums: Sequence[Any]) -> list[Any]:
    """The sum over the lanes of each vector, in order, as many to a vector as fit."""
    L = sums[0].type.count
    full = [_transposed_sum(builder, sums[i : i + L], L) for i in range(0, len(sums), L)]
    rest = len(sums) - L * (len(full) - 1)
    full[-1] = full[-1] if rest == L else shuffle(builder, full[-1], [*range(rest)])
    return full


def _transposed_sum(builder: Any, sums: Sequence[Any], L: int) -> Any:
    """Lane i is the sum over the lanes of sums[i]. Two vectors at a time become one, in steps that stay within 128 bits
    as long as they can; the last of an odd number goes with itself.
    """
    steps = [[i % 4 < 2 for i in range(L)], [i % 2 == 0 for i in range(L)]]  # which lanes meet the others
    if L >= 8:
        steps.append([i // 4 < L // 8 for i in range(L)])
    if L >= 16:
        steps.append([i // 4 % 2 == 0 for i in range(L)])
    left = list(sums)
    for number_of_step, chosen in enumerate(steps):
        low, high = ([i for i in range(L) if chosen[i] is side] for side in (True, False))
        mask = [_merged(L, half, number_of_step < 2) for half in (low, high)]
        left = [
            builder.fadd(*(builder.shuffle_vector(a, b, constant(ir.VectorType(I32, L), m)) for m in mask))
            for a, b in zip(left[::2], [*left[1::2], left[-1]], strict=False)
        ]
    return left[0]


def _merged(L: int, lanes: list[int], within: bool) -> list[int]:
    """These lanes of two vectors: two of the one and two of the other in each 128 bits, or one after the other."""
    if not within:
        return [*lanes, *[L + i for i in lanes]]
    pairs = [lanes[i : i + 2] for i in range(0, len(lanes), 2)]
    return [i for pair in pairs for i in (*pair, *[L + j for j in pair])]
