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
an argument's type.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pqkv.vector_code import (
    I64,
    add_product,
    constant,
    data,
    floats,
    number,
    prefetch,
    shuffle,
    splat,
    store,
    variable,
    vector,
)

ROW, TRANSPOSED, TRANSPOSED_64 = 0, 1, 2  # lengths of an `order`


def _centroid(builder: Any, table: Any, row: Any, heads: int, d_sub: int) -> Any:
    """The d_sub numbers at `row`, once for every head."""
    if d_sub == 1:
        return splat(builder, number(builder, table, row), heads)
    return shuffle(builder, vector(builder, table, row, d_sub), [*range(d_sub)] * heads)


class _Tokens:
    """The tokens of a block: arguments `codes, first, count, start, stride, size` from `index` on, and the last two,
    `nbits, order`. Codes are read in a loop over the tokens, t = 0 ... count - 1, of which `first` came before.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any, index: int) -> None:
        self.builder = builder
        self.codes = data(context, builder, signature, arguments, index)
        self.first, self.count, self.start, stride, size = arguments[index + 1 : index + 6]
        nbits, order = signature.args[-2:]
        self.transposed = len(order) != ROW
        self.stride = I64(64) if len(order) == TRANSPOSED_64 else stride
        self.entries = I64(256) if len(nbits) == 8 else size

    def place(self, t: Any, width: int) -> Any:
        """Where the `width` numbers of token t begin in an array of all tokens."""
        return self.builder.mul(self.builder.add(self.first, t), I64(width))

    def row(self, t: Any, j: int, width: int) -> Any:
        """Where the row of `width` numbers begins that the code of token t names in the table of subspace j."""
        builder = self.builder
        token_step, step = (I64(1), self.stride) if self.transposed else (self.stride, I64(1))
        place = builder.add(builder.add(self.start, builder.mul(t, token_step)), builder.mul(step, I64(j)))
        code = builder.zext(builder.load(builder.gep(self.codes, [place])), I64)
        return builder.add(builder.mul(self.entries, I64(j * width)), builder.mul(code, I64(width)))


@intrinsic
def prefetch_lines(typing_context, codes, start, stride, block):
    """Ask for the codes of J subspaces of a transposed page, `stride` bytes apart, before they are needed."""
    signature = types.void(codes, types.intp, types.intp, block)
    J = len(block)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = data(context, builder, signature, arguments, 0)
        for j in range(J):
            prefetch(builder, builder.gep(pointer, [builder.add(arguments[1], builder.mul(arguments[2], I64(j)))]), 3)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def prefetch_table(typing_context, table, start, count):
    """Ask for `count` floats from `start` on, all at once: codes would fetch them one miss after another."""
    signature = types.void(table, types.intp, types.intp)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = data(context, builder, signature, arguments, 0)
        with cgutils.for_range(builder, builder.udiv(builder.add(arguments[2], I64(15)), I64(16))) as loop:
            prefetch(builder, builder.gep(pointer, [builder.add(arguments[1], builder.mul(loop.index, I64(16)))]), 2)
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
        partial, query, table = (data(context, builder, signature, arguments, i) for i in range(3))
        tokens = _Tokens(context, builder, signature, arguments, 3)
        queries = [vector(builder, query, I64(j * G * S), G * S) for j in range(J)]
        with cgutils.for_range(builder, tokens.count) as loop:
            target = tokens.place(loop.index, G * S)
            total = vector(builder, partial, target, G * S)
            for j in range(J):
                centroid = _centroid(builder, table, tokens.row(loop.index, j, S), G, S)
                total = add_product(builder, queries[j], centroid, total)
            store(builder, total, partial, target)
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
        out, weights, table = (data(context, builder, signature, arguments, i) for i in range(3))
        tokens = _Tokens(context, builder, signature, arguments, 3)
        spread = [g for g in range(G) for _ in range(S)]
        sums = [variable(builder, vector(builder, out, I64(j * G * S), G * S)) for j in range(J)]
        with cgutils.for_range(builder, tokens.count) as loop:
            mass = shuffle(builder, vector(builder, weights, tokens.place(loop.index, G), G), spread)
            for j in range(J):
                centroid = _centroid(builder, table, tokens.row(loop.index, j, S), G, S)
                builder.store(add_product(builder, mass, centroid, builder.load(sums[j])), sums[j])
        for j in range(J):
            store(builder, builder.load(sums[j]), out, I64(j * G * S))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def fill_table(typing_context, lookup, query, table, count, heads, d_sub):
    """lookup[c * G ...] = the products of centroid c = table[c * d_sub ...] with G queries, query[e * G + g]."""
    G, S = len(heads), len(d_sub)
    signature = types.void(lookup, query, table, types.intp, heads, d_sub)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lookup, query, table = (data(context, builder, signature, arguments, i) for i in range(3))
        queries = [vector(builder, query, I64(e * G), G) for e in range(S)]
        with cgutils.for_range(builder, arguments[3]) as loop:
            row, total = builder.mul(loop.index, I64(S)), constant(floats(G), [0.0] * G)
            for e in range(S):
                element = number(builder, table, builder.add(row, I64(e)))
                total = add_product(builder, queries[e], splat(builder, element, G), total)
            store(builder, total, lookup, builder.mul(loop.index, I64(G)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def sum_block(typing_context, scores, lookup, codes, first, count, start, stride, size, heads, block, nbits, order):
    """scores[(first + t) * G ...] += lookup[(j * C + code of token t in subspace j) * G ...], for all j."""
    G, J = len(heads), len(block)
    signature = types.void(scores, lookup, codes, *[types.intp] * 5, heads, block, nbits, order)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, lookup = (data(context, builder, signature, arguments, i) for i in range(2))
        tokens = _Tokens(context, builder, signature, arguments, 2)
        with cgutils.for_range(builder, tokens.count) as loop:
            target = tokens.place(loop.index, G)
            total = vector(builder, scores, target, G)
            for j in range(J):
                total = builder.fadd(total, vector(builder, lookup, tokens.row(loop.index, j, G), G))
            store(builder, total, scores, target)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def bin_block(typing_context, bins, weights, codes, first, count, start, stride, size, heads, block, nbits, order):
    """bins[(j * C + code of token t in subspace j) * G ...] += weights[(first + t) * G ...], for all j."""
    G, J = len(heads), len(block)
    signature = types.void(bins, weights, codes, *[types.intp] * 5, heads, block, nbits, order)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bins, weights = (data(context, builder, signature, arguments, i) for i in range(2))
        tokens = _Tokens(context, builder, signature, arguments, 2)
        with cgutils.for_range(builder, tokens.count) as loop:
            mass = vector(builder, weights, tokens.place(loop.index, G), G)
            rows = [tokens.row(loop.index, j, G) for j in range(J)]
            for row in rows:
                store(builder, builder.fadd(vector(builder, bins, row, G), mass), bins, row)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def empty_bins(typing_context, out, bins, table, count, heads, d_sub):
    """out[...] = the sum over c of bins[c * G ...] times centroid table[c * d_sub ...], lanes (head, element)."""
    G, S = len(heads), len(d_sub)
    signature = types.void(out, bins, table, types.intp, heads, d_sub)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out, bins, table = (data(context, builder, signature, arguments, i) for i in range(3))
        spread = [g for g in range(G) for _ in range(S)]
        total = variable(builder, constant(floats(G * S), [0.0] * (G * S)))
        with cgutils.for_range(builder, arguments[3]) as loop:
            mass = shuffle(builder, vector(builder, bins, builder.mul(loop.index, I64(G)), G), spread)
            centroid = _centroid(builder, table, builder.mul(loop.index, I64(S)), G, S)
            builder.store(add_product(builder, mass, centroid, builder.load(total)), total)
        store(builder, builder.load(total), out, I64(0))
        return context.get_dummy_value()

    return signature, generate
