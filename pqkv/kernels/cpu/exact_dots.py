"""Vector code for exact bfloat16 vectors where the processor sums products of pairs of them (`vdpbf16ps`).

Nothing is widened. Keys meet a query in two planes of bfloat16, the number rounded and what that leaves, which is as
good as 16 bits. Values meet weights rounded to bfloat16, as torch's bfloat16 attention rounds them, two tokens at a
time, whose registers are interleaved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from pqkv.kernels.cpu.exact_code import Rows, add_to, emit_columns, emit_tiles
from pqkv.kernels.cpu.exact_form import BFLOAT16, Form, Piece, interleaved_lanes, key_row, value_row
from pqkv.vector_code import I16, I32, I64, constant, floats, splat, vector

PLANES = 2  # of a query
_ROUNDED = 8  # tokens whose weights are rounded at once


class _BFloat(ir.Type):
    """LLVM's bfloat16, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def emit_pair_scores(builder: Any, form: Form, rest: int, heads: int, scores: Any, query: Any, rows: Rows) -> None:
    """As `exact_code.emit_scores`; `query` holds plane p of register v of head g from ((v * 2 + p) * heads + g) * lanes
    words on, each two numbers of bfloat16.
    """
    L = form.lanes

    def products(sums: list[Any], place: Any, tokens: list[Any], piece: Piece, first: int, block: int) -> None:
        keys = [_pairs(builder, form, token, piece) for token in tokens]
        for plane in range(PLANES):
            for g in range(block):
                at = builder.gep(query, [builder.add(place, I64((plane * heads + first + g) * L))])
                own = builder.load(builder.bitcast(at, ir.VectorType(I32, L).as_pointer()), align=4)
                for k, key in enumerate(keys):
                    _add_pairs(builder, form, sums[k * block + g], key, own)

    emit_tiles(builder, form, key_row(rest, BFLOAT16, form), heads, PLANES * L * heads, scores, rows, products)


def emit_pair_values(
    builder: Any, form: Form, rest: int, heads: int, sums: Any, weights: Any, stride: Any, rows: Rows
) -> None:
    """As `exact_code.emit_values`, with weights[g * stride + t] in bfloat16."""
    L = form.lanes
    words = builder.bitcast(weights, I16.as_pointer())

    def add(totals: list[list[Any]], start: Any, column: Sequence[Piece], first: int, block: int) -> None:
        own = [builder.gep(words, [builder.mul(stride, I64(first + g))]) for g in range(block)]

        def mixed(token: Any, other: Any | None) -> None:
            """Add a token and the one behind it, or nothing, by the weights of both."""
            values = []
            here = [builder.add(builder.mul(t, rows.length), start) for t in (token, other) if t is not None]
            for piece in column:
                loaded = [_pairs(builder, form, builder.gep(rows.start, [at]), piece) for at in here]
                none = constant(loaded[0].type, [0] * loaded[0].type.count)
                values += _interleaved(builder, form, *(loaded if other is not None else [*loaded, none]))
                here = [builder.add(at, I64(piece.width)) for at in here]
            for g, of_head in enumerate(own):
                place = builder.gep(of_head, [token])
                if other is None:
                    mass = builder.zext(builder.load(place, align=2), I32)
                else:
                    mass = builder.load(builder.bitcast(place, I32.as_pointer()), align=2)
                for i, value in enumerate(values):
                    _add_pairs(builder, form, totals[i][g], value, splat(builder, mass, L))

        with cgutils.for_range(builder, builder.lshr(rows.count, I64(1))) as loop:
            token = builder.shl(loop.index, I64(1))
            mixed(token, builder.add(token, I64(1)))
            if first == 0:
                width = 2 * sum(piece.width for piece in column)
                at = builder.add(builder.mul(start, rows.count), builder.mul(loop.index, I64(width)))
                rows.prefetch(builder, at, width)
        with builder.if_then(builder.trunc(rows.count, ir.IntType(1))):
            mixed(builder.sub(rows.count, I64(1)), None)

    emit_columns(builder, form, value_row(rest, BFLOAT16, form), heads, sums, rows, add)


def emit_rounded(builder: Any, heads: int, rounded: Any, stride: Any, weights: Any, count: Any) -> None:
    """rounded[g * stride + t] = weights[t * heads + g] in bfloat16, the nearest, ties to even; NaN stays NaN. Up to 7
    tokens more are read and written.
    """
    U = _ROUNDED
    target = builder.bitcast(rounded, I16.as_pointer())
    blocks = builder.udiv(builder.add(count, I64(U - 1)), I64(U))
    with cgutils.for_range(builder, blocks) as loop:
        place = builder.mul(loop.index, I64(U))
        for g in range(heads):
            own = _strided(builder, weights, builder.mul(place, I64(heads)), g, heads)
            halves = builder.trunc(_upper_half(builder, own, U), ir.VectorType(I16, U))
            at = builder.add(builder.mul(stride, I64(g)), place)
            store_at = builder.bitcast(builder.gep(target, [at]), halves.type.as_pointer())
            builder.store(halves, store_at, align=2)


def _strided(builder: Any, weights: Any, start: Any, g: int, heads: int) -> Any:
    """The weights of head g of a few tokens, out of those of all heads."""
    every = vector(builder, weights, start, _ROUNDED * heads)
    lanes = [t * heads + g for t in range(_ROUNDED)]
    undefined = ir.Constant(every.type, ir.Undefined)
    return builder.shuffle_vector(every, undefined, constant(ir.VectorType(I32, _ROUNDED), lanes))


def _upper_half(builder: Any, value: Any, width: int) -> Any:
    words = ir.VectorType(I32, width)

    def same(number: int) -> Any:
        return constant(words, [number] * width)

    bits = builder.bitcast(value, words)
    even = builder.and_(builder.lshr(bits, same(16)), same(1))
    nearest = builder.lshr(builder.add(bits, builder.add(even, same(0x7FFF))), same(16))
    return builder.select(builder.fcmp_unordered("uno", value, value), same(0x7FC0), nearest)


def _pairs(builder: Any, form: Form, row: Any, piece: Piece) -> Any:
    """2 L numbers, zeros behind those of the piece."""
    kind, full = ir.VectorType(I16, piece.width), 2 * form.lanes
    loaded = builder.load(builder.bitcast(row, kind.as_pointer()), align=2)
    if piece.width == full:
        return loaded
    places = [*range(piece.width), *[piece.width] * (full - piece.width)]
    zeros = constant(kind, [0] * piece.width)
    return builder.shuffle_vector(loaded, zeros, constant(ir.VectorType(I32, full), places))


def _interleaved(builder: Any, form: Form, one: Any, other: Any) -> list[Any]:
    """Number by number in turns: what is first in each 128 bits, and what is second."""
    full = 2 * form.lanes
    return [
        builder.shuffle_vector(
            one, other, constant(ir.VectorType(I32, full), [i for lane in lanes for i in (lane, full + lane)])
        )
        for lanes in interleaved_lanes(form)
    ]


def _add_pairs(builder: Any, form: Form, total: Any, pairs: Any, others: Any) -> None:
    """The variable `total` += lane by lane the two products of a pair of bfloat16 with another."""
    L = form.lanes
    if form.emulated:
        for half in (_odd, _even):
            add_to(builder, total, half(builder, pairs, L), half(builder, others, L))
        return
    halves = ir.VectorType(_BFloat(), 2 * L)
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * L}"
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(floats(L), [floats(L), halves, halves]), name
    )
    given = [builder.load(total), builder.bitcast(pairs, halves), builder.bitcast(others, halves)]
    builder.store(builder.call(function, given), total)


def _odd(builder: Any, pairs: Any, L: int) -> Any:
    words = ir.VectorType(I32, L)
    odd = builder.and_(builder.bitcast(pairs, words), constant(words, [0xFFFF0000] * L))
    return builder.bitcast(odd, floats(L))


def _even(builder: Any, pairs: Any, L: int) -> Any:
    words = ir.VectorType(I32, L)
    return builder.bitcast(builder.shl(builder.bitcast(pairs, words), constant(words, [16] * L)), floats(L))
