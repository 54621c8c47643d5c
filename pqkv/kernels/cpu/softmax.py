"""The softmax of a stretch in vector code: scores folded from lanes, their largest, 2**x and sums.

`heads` and `unit` are tags: numbers of query heads that share a KV head, and of tokens that fill a vector with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pqkv.vector_code import I32, I64, add_product, constant, data, floats, shuffle, store, variable, vector


@intrinsic
def fold_scores(typing_context, partial, scores, count, heads, d_sub):
    """scores[t * G + g] = sum over s of partial[t * W + g * d_sub + s]."""
    G, S = len(heads), len(d_sub)
    signature = types.void(partial, scores, types.intp, heads, d_sub)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        partial, scores = (data(context, builder, signature, arguments, i) for i in range(2))
        with cgutils.for_range(builder, arguments[2]) as loop:
            row = vector(builder, partial, builder.mul(loop.index, I64(G * S)), G * S)
            total = shuffle(builder, row, [g * S for g in range(G)])
            for s in range(1, S):
                total = builder.fadd(total, shuffle(builder, row, [g * S + s for g in range(G)]))
            store(builder, total, scores, builder.mul(loop.index, I64(G)))
        return context.get_dummy_value()

    return signature, generate


# 2**f - 1 on [-1/2, 1/2] in powers of f, from the series of exp(f ln 2); the next term is below 2e-8
POWERS = [float(np.log(2) ** k / np.prod(range(1, k + 1))) for k in range(7, 0, -1)]


def exp2(builder: Any, x: Any, lanes: int, add: Callable[..., Any] = add_product) -> Any:
    """2**x of a vector of numbers at most 0; below -126 it is 0. `add(builder, a, b, c)` is a b + c."""
    wholes = ir.VectorType(I32, lanes)

    def same(value: float) -> Any:
        return constant(x.type, [value] * lanes)

    tiny = builder.fcmp_ordered("<", x, same(-126.0))
    x = builder.select(tiny, same(-126.0), x)
    # adding 1.5 * 2**23 leaves the nearest whole number in the lowest bits
    magic = same(12582912.0)
    shifted = builder.fadd(x, magic)
    fraction = builder.fsub(x, builder.fsub(shifted, magic))
    power = same(POWERS[0])
    for coefficient in [*POWERS[1:], 1.0]:
        power = add(builder, power, fraction, same(coefficient))
    exponent = builder.shl(builder.bitcast(shifted, wholes), constant(wholes, [23] * lanes))
    result = builder.bitcast(builder.add(builder.bitcast(power, wholes), exponent), x.type)
    return builder.select(tiny, same(0.0), result)


@intrinsic
def soften(typing_context, scores, top, sums, count, heads, unit):
    """scores[i] = 2**(scores[i] - top[i mod L]) for count * L numbers, L = G * unit; sums[i mod L] gets their sums.

    A score of -inf becomes 0; `top` must be finite. The length of `unit` says how many tokens fill a vector.
    """
    L = len(heads) * len(unit)
    signature = types.void(scores, top, sums, types.intp, heads, unit)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, top, sums = (data(context, builder, signature, arguments, i) for i in range(3))
        highest = vector(builder, top, I64(0), L)
        total = variable(builder, constant(floats(L), [0.0] * L))
        with cgutils.for_range(builder, arguments[3]) as loop:
            place = builder.mul(loop.index, I64(L))
            mass = exp2(builder, builder.fsub(vector(builder, scores, place, L), highest), L)
            store(builder, mass, scores, place)
            builder.store(builder.fadd(builder.load(total), mass), total)
        store(builder, builder.load(total), sums, I64(0))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def largest(typing_context, scores, top, count, heads, unit):
    """top[i mod L] = the largest scores[i] of count * L numbers."""
    L = len(heads) * len(unit)
    signature = types.void(scores, top, types.intp, heads, unit)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, top = (data(context, builder, signature, arguments, i) for i in range(2))
        lowest = constant(floats(L), [float("-inf")] * L)
        best = variable(builder, lowest)
        with cgutils.for_range(builder, arguments[2]) as loop:
            row, known = vector(builder, scores, builder.mul(loop.index, I64(L)), L), builder.load(best)
            builder.store(builder.select(builder.fcmp_ordered(">", row, known), row, known), best)
        store(builder, builder.load(best), top, I64(0))
        return context.get_dummy_value()

    return signature, generate
