"""Vector code for look-ups, emitted by hand: LLVM does not vectorize a loop whose loads depend on codes.

A group of G query heads reads the codes of its KV head once. Two ways:

- *centroids*: each code's centroid is loaded once, into a register, and serves all heads; lanes are (head, element of
  the subspace), W = G * d_sub of them. One load and one fused product where W floats fill a register;
- *tables*: a look-up brings the G numbers of a code at once: scores from a table that was made from the queries, or
  bins that gather the probability mass of each centroid. Cheaper where W takes several registers.

J subspaces are taken at a time, so that what they look up stays in the first-level cache while the tokens pass by.

Codes: the one of token t in subspace j of a block is codes[start + j * stride + t] in a transposed page and
codes[start + j + t * stride] in one of rows. G, d_sub and J are compile-time constants, and so is what is common enough
to deserve shorter code: 256 entries, a stride of 64. Constants come as the lengths of tuples (`tag`), which are part of
an argument's type, so that Numba compiles and caches one variant each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

ROW, TRANSPOSED, TRANSPOSED_64 = 0, 1, 2  # lengths of an `order`
FLOAT, I64 = ir.FloatType(), ir.IntType(64)
_FUSE = ("contract", "nsz")  # a product and a sum may become one instruction


def tag(number: int) -> tuple[int, ...]:
    """A tuple whose type says `number`."""
    return (0,) * number


def _data(context: Any, builder: Any, signature: Any, arguments: Any, index: int) -> Any:
    return context.make_array(signature.args[index])(context, builder, arguments[index]).data


def _vector(builder: Any, pointer: Any, offset: Any, lanes: int) -> Any:
    kind = ir.VectorType(FLOAT, lanes)
    place = builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())
    return builder.load(place, align=4)


def _store(builder: Any, value: Any, pointer: Any, offset: Any) -> None:
    place = builder.bitcast(builder.gep(pointer, [offset]), value.type.as_pointer())
    builder.store(value, place, align=4)


def _shuffle(builder: Any, value: Any, lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    one = builder.insert_element(ir.Constant(ir.VectorType(value.type, 1), ir.Undefined), value, ir.IntType(32)(0))
    return _shuffle(builder, one, [0] * lanes)


def _add_product(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.fadd(builder.fmul(a, b, flags=_FUSE), c, flags=_FUSE)


def _row(builder: Any, code: Any, j: int, entries: Any, width: int) -> Any:
    """Where the row of `width` numbers for `code` begins in the table of subspace j of a block."""
    return builder.add(builder.mul(entries, I64(j * width)), builder.mul(code, I64(width)))


def _entries(nbits: Any, size: Any) -> Any:
    """Entries of a table: a constant for 8-bit codes, else the argument `size`."""
    return I64(256) if len(nbits) == 8 else size


def _centroid(builder: Any, table: Any, row: Any, heads: int, d_sub: int) -> Any:
    """The d_sub numbers at `row`, once for every head."""
    if d_sub == 1:
        return _splat(builder, builder.load(builder.gep(table, [row]), align=4), heads)
    return _shuffle(builder, _vector(builder, table, row, d_sub), [*range(d_sub)] * heads)


class _Codes:
    """Reads the codes of one page in a loop over its tokens."""

    def __init__(self, builder: Any, codes: Any, start: Any, stride: Any, order: Any) -> None:
        self.builder, self.codes, self.start = builder, codes, start
        self.transposed = len(order) != ROW
        self.stride = I64(64) if len(order) == TRANSPOSED_64 else stride

    def at(self, token: Any, j: int) -> Any:
        """Code of a token in subspace j of the block, as a 64-bit number."""
        builder = self.builder
        token_step, step = (I64(1), self.stride) if self.transposed else (self.stride, I64(1))
        place = builder.add(builder.add(self.start, builder.mul(token, token_step)), builder.mul(step, I64(j)))
        return builder.zext(builder.load(builder.gep(self.codes, [place])), I64)


def _prefetch(builder: Any, pointer: Any, level: int) -> None:
    """Ask for a line; level 3 is the first-level cache, 2 the second."""
    byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
    kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [builder.bitcast(pointer, byte), i32(0), i32(level), i32(1)])


@intrinsic
def prefetch_lines(typing_context, codes, start, stride, block):
    """Ask for the codes of J subspaces of a transposed page, `stride` bytes apart, before they are needed."""
    signature = types.void(codes, types.intp, types.intp, block)
    J = len(block)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _data(context, builder, signature, arguments, 0)
        for j in range(J):
            _prefetch(builder, builder.gep(pointer, [builder.add(arguments[1], builder.mul(arguments[2], I64(j)))]), 3)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def prefetch_table(typing_context, table, start, count):
    """Ask for `count` floats from `start` on, all at once: codes would fetch them one miss after another."""
    signature = types.void(table, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _data(context, builder, signature, arguments, 0)
        with cgutils.for_range(builder, builder.udiv(builder.add(arguments[2], I64(15)), I64(16))) as loop:
            _prefetch(builder, builder.gep(pointer, [builder.add(arguments[1], builder.mul(loop.index, I64(16)))]), 2)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def score_block(
    typing_context, partial, query, table, codes, first, count, start, stride, size, heads, d_sub, block, nbits, order
):
    """partial[(first + t) * W ...] += query[j * W ...] * centroid of the code of token t in subspace j, for all j."""
    G, S, J = (len(t) for t in (heads, d_sub, block))
    signature = types.void(partial, query, table, codes, *[types.intp] * 5, heads, d_sub, block, nbits, order)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        partial, query, table, codes = (_data(context, builder, signature, arguments, i) for i in range(4))
        first, count, start, stride, size = arguments[4:9]
        W, page = G * S, _Codes(builder, codes, start, stride, order)
        queries = [_vector(builder, query, I64(j * W), W) for j in range(J)]
        with cgutils.for_range(builder, count) as loop:
            target = builder.mul(builder.add(first, loop.index), I64(W))
            total = _vector(builder, partial, target, W)
            for j in range(J):
                row = _row(builder, page.at(loop.index, j), j, _entries(nbits, size), S)
                total = _add_product(builder, queries[j], _centroid(builder, table, row, G, S), total)
            _store(builder, total, partial, target)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def value_block(
    typing_context, out, weights, table, codes, first, count, start, stride, size, heads, d_sub, block, nbits, order
):
    """out[j * W ...] += weights[(first + t) * G ...] * centroid of the code of token t in subspace j, for all j."""
    G, S, J = (len(t) for t in (heads, d_sub, block))
    signature = types.void(out, weights, table, codes, *[types.intp] * 5, heads, d_sub, block, nbits, order)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, weights, table, codes = (_data(context, builder, signature, arguments, i) for i in range(4))
        first, count, start, stride, size = arguments[4:9]
        W, page = G * S, _Codes(builder, codes, start, stride, order)
        spread = [g for g in range(G) for _ in range(S)]
        sums = [cgutils.alloca_once_value(builder, _vector(builder, out, I64(j * W), W)) for j in range(J)]
        with cgutils.for_range(builder, count) as loop:
            mass = _vector(builder, weights, builder.mul(builder.add(first, loop.index), I64(G)), G)
            mass = _shuffle(builder, mass, spread)
            for j in range(J):
                row = _row(builder, page.at(loop.index, j), j, _entries(nbits, size), S)
                centroid = _centroid(builder, table, row, G, S)
                builder.store(_add_product(builder, mass, centroid, builder.load(sums[j])), sums[j])
        for j in range(J):
            _store(builder, builder.load(sums[j]), out, I64(j * W))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def fill_table(typing_context, lookup, query, table, count, heads, d_sub):
    """lookup[c * G ...] = the products of centroid c = table[c * d_sub ...] with G queries, query[e * G + g]."""
    G, S = len(heads), len(d_sub)
    signature = types.void(lookup, query, table, types.intp, heads, d_sub)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lookup, query, table = (_data(context, builder, signature, arguments, i) for i in range(3))
        queries = [_vector(builder, query, I64(e * G), G) for e in range(S)]
        with cgutils.for_range(builder, arguments[3]) as loop:
            row, total = builder.mul(loop.index, I64(S)), ir.Constant(ir.VectorType(FLOAT, G), [0.0] * G)
            for e in range(S):
                element = builder.load(builder.gep(table, [builder.add(row, I64(e))]), align=4)
                total = _add_product(builder, queries[e], _splat(builder, element, G), total)
            _store(builder, total, lookup, builder.mul(loop.index, I64(G)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def sum_block(typing_context, scores, lookup, codes, first, count, start, stride, size, heads, block, nbits, order):
    """scores[(first + t) * G ...] += lookup[(j * C + code of token t in subspace j) * G ...], for all j."""
    G, J = len(heads), len(block)
    signature = types.void(scores, lookup, codes, *[types.intp] * 5, heads, block, nbits, order)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, lookup, codes = (_data(context, builder, signature, arguments, i) for i in range(3))
        first, count, start, stride, size = arguments[3:8]
        page = _Codes(builder, codes, start, stride, order)
        with cgutils.for_range(builder, count) as loop:
            target = builder.mul(builder.add(first, loop.index), I64(G))
            total = _vector(builder, scores, target, G)
            for j in range(J):
                row = _row(builder, page.at(loop.index, j), j, _entries(nbits, size), G)
                total = builder.fadd(total, _vector(builder, lookup, row, G))
            _store(builder, total, scores, target)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def bin_block(typing_context, bins, weights, codes, first, count, start, stride, size, heads, block, nbits, order):
    """bins[(j * C + code of token t in subspace j) * G ...] += weights[(first + t) * G ...], for all j."""
    G, J = len(heads), len(block)
    signature = types.void(bins, weights, codes, *[types.intp] * 5, heads, block, nbits, order)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bins, weights, codes = (_data(context, builder, signature, arguments, i) for i in range(3))
        first, count, start, stride, size = arguments[3:8]
        page = _Codes(builder, codes, start, stride, order)
        with cgutils.for_range(builder, count) as loop:
            mass = _vector(builder, weights, builder.mul(builder.add(first, loop.index), I64(G)), G)
            rows = [_row(builder, page.at(loop.index, j), j, _entries(nbits, size), G) for j in range(J)]
            for row in rows:
                _store(builder, builder.fadd(_vector(builder, bins, row, G), mass), bins, row)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def empty_bins(typing_context, out, bins, table, count, heads, d_sub):
    """out[...] = the sum over c of bins[c * G ...] times centroid table[c * d_sub ...], lanes (head, element)."""
    G, S = len(heads), len(d_sub)
    signature = types.void(out, bins, table, types.intp, heads, d_sub)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, bins, table = (_data(context, builder, signature, arguments, i) for i in range(3))
        spread = [g for g in range(G) for _ in range(S)]
        total = cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(FLOAT, G * S), [0.0] * (G * S)))
        with cgutils.for_range(builder, arguments[3]) as loop:
            mass = _shuffle(builder, _vector(builder, bins, builder.mul(loop.index, I64(G)), G), spread)
            centroid = _centroid(builder, table, builder.mul(loop.index, I64(S)), G, S)
            builder.store(_add_product(builder, mass, centroid, builder.load(total)), total)
        _store(builder, builder.load(total), out, I64(0))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def fold_scores(typing_context, partial, scores, count, heads, d_sub):
    """scores[t * G + g] = sum over s of partial[t * W + g * d_sub + s]."""
    G, S = len(heads), len(d_sub)
    signature = types.void(partial, scores, types.intp, heads, d_sub)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        partial, scores = (_data(context, builder, signature, arguments, i) for i in range(2))
        with cgutils.for_range(builder, arguments[2]) as loop:
            row = _vector(builder, partial, builder.mul(loop.index, I64(G * S)), G * S)
            total = _shuffle(builder, row, [g * S for g in range(G)])
            for s in range(1, S):
                total = builder.fadd(total, _shuffle(builder, row, [g * S + s for g in range(G)]))
            _store(builder, total, scores, builder.mul(loop.index, I64(G)))
        return context.get_dummy_value()

    return signature, generate


# 2**f - 1 on [-1/2, 1/2] in powers of f, from the series of exp(f ln 2); the next term is below 2e-8
_POWERS = [float(np.log(2) ** k / np.prod(range(1, k + 1))) for k in range(7, 0, -1)]


def _exp2(builder: Any, x: Any, lanes: int) -> Any:
    """2**x of a vector of numbers at most 0; below -126 it is 0."""
    vector, whole_type = x.type, ir.VectorType(ir.IntType(32), lanes)

    def constant(value: float) -> Any:
        return ir.Constant(vector, [value] * lanes)

    tiny = builder.fcmp_ordered("<", x, constant(-126.0))
    x = builder.select(tiny, constant(-126.0), x)
    # adding 1.5 * 2**23 leaves the nearest whole number in the lowest bits
    magic = constant(12582912.0)
    shifted = builder.fadd(x, magic)
    fraction = builder.fsub(x, builder.fsub(shifted, magic))
    power = constant(_POWERS[0])
    for coefficient in [*_POWERS[1:], 1.0]:
        power = _add_product(builder, power, fraction, constant(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, whole_type), ir.Constant(whole_type, [23] * lanes))
    result = builder.bitcast(builder.add(builder.bitcast(power, whole_type), exponent), vector)
    return builder.select(tiny, constant(0.0), result)


@intrinsic
def soften(typing_context, scores, top, sums, count, heads, unit):
    """scores[i] = 2**(scores[i] - top[i mod L]) for count * L numbers, L = G * unit; sums[i mod L] gets their sums.

    A score of -inf becomes 0; `top` must be finite. The length of `unit` says how many tokens fill a vector.
    """
    L = len(heads) * len(unit)
    signature = types.void(scores, top, sums, types.intp, heads, unit)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, top, sums = (_data(context, builder, signature, arguments, i) for i in range(3))
        highest = _vector(builder, top, I64(0), L)
        total = cgutils.alloca_once_value(builder, ir.Constant(ir.VectorType(FLOAT, L), [0.0] * L))
        with cgutils.for_range(builder, arguments[3]) as loop:
            place = builder.mul(loop.index, I64(L))
            mass = _exp2(builder, builder.fsub(_vector(builder, scores, place, L), highest), L)
            _store(builder, mass, scores, place)
            builder.store(builder.fadd(builder.load(total), mass), total)
        _store(builder, builder.load(total), sums, I64(0))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def largest(typing_context, scores, top, count, heads, unit):
    """top[i mod L] = the largest scores[i] of count * L numbers."""
    L = len(heads) * len(unit)
    signature = types.void(scores, top, types.intp, heads, unit)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, top = (_data(context, builder, signature, arguments, i) for i in range(2))
        lowest = ir.Constant(ir.VectorType(FLOAT, L), [float("-inf")] * L)
        best = cgutils.alloca_once_value(builder, lowest)
        with cgutils.for_range(builder, arguments[2]) as loop:
            row, known = _vector(builder, scores, builder.mul(loop.index, I64(L)), L), builder.load(best)
            builder.store(builder.select(builder.fcmp_ordered(">", row, known), row, known), best)
        _store(builder, builder.load(best), top, I64(0))
        return context.get_dummy_value()

    return signature, generate
