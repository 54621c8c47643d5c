"""The bias that a mean that turns leaves in the scores, and the gains of values, for a stretch of coded tokens.

Token j gets, for every query head, sum over pairs of a cos(theta j) + b sin(theta j). A block of 64 tokens turns the
pairs' phasors to its middle, by a table made in float64, and takes one product of them with the turns inside a block,
or for all slow pairs together with polynomials of the distance from there (`pqkv.kernels.turns`): no drift. What is
even in the distance and what is odd are summed apart, behind the middle; tokens before it get the difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from pqkv.kernels.turns import BLOCK, POLYNOMIALS
from pqkv.vector_code import (
    I32,
    I64,
    add_product,
    constant,
    data,
    floats,
    number,
    shuffle,
    splat,
    store,
    variable,
    vector,
)

HALF = BLOCK // 2
_WIDE = bool(get_host_cpu_features().get("avx512f"))
_LANES = 16 if _WIDE else 8  # floats of a vector register
_FUSE = ("contract", "nsz")


@intrinsic
def _turn(typing_context, turned, phasors, turns, count, heads):
    """turned (count, 2, G): phasors (count, 2, G), the factors of cos and sin, as they are further on by the angles
    whose cos and sin are turns (count, 2).
    """
    G = len(heads)
    signature = types.void(turned, phasors, turns, types.intp, heads)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        turned, phasors, turns = (data(context, builder, signature, arguments, i) for i in range(3))
        with cgutils.for_range(builder, arguments[3]) as loop:
            place, pair = builder.mul(loop.index, I64(2 * G)), builder.mul(loop.index, I64(2))
            a, b = vector(builder, phasors, place, G), vector(builder, phasors, builder.add(place, I64(G)), G)
            cos = splat(builder, number(builder, turns, pair), G)
            sin = splat(builder, number(builder, turns, builder.add(pair, I64(1))), G)
            store(builder, add_product(builder, b, sin, builder.fmul(a, cos)), turned, place)
            other = builder.fsub(builder.fmul(b, cos, flags=_FUSE), builder.fmul(a, sin, flags=_FUSE), flags=_FUSE)
            store(builder, other, turned, builder.add(place, I64(G)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _gather_slow(typing_context, turned, fast, slow, count, heads):
    """The phasors of the `count` slow pairs, turned (pairs, 2, G) from `fast` on, become the factors of polynomials,
    which take their place: slow (count, POLYNOMIALS).
    """
    G = len(heads)
    signature = types.void(turned, types.intp, slow, types.intp, heads)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        turned, slow = (data(context, builder, signature, arguments, i) for i in (0, 2))
        start = builder.mul(arguments[1], I64(2 * G))
        sums = [variable(builder, constant(floats(G), [0.0] * G)) for _ in range(POLYNOMIALS)]
        with cgutils.for_range(builder, arguments[3]) as loop:
            place = builder.add(start, builder.mul(loop.index, I64(2 * G)))
            phasor = [vector(builder, turned, builder.add(place, I64(i * G)), G) for i in range(2)]
            factors = builder.mul(loop.index, I64(POLYNOMIALS))
            for k, total in enumerate(sums):
                factor = splat(builder, number(builder, slow, builder.add(factors, I64(k))), G)
                builder.store(add_product(builder, phasor[k % 2], factor, builder.load(total)), total)
        for k, total in enumerate(sums):
            store(builder, builder.load(total), turned, builder.add(start, I64(k * G)))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _add_sums(typing_context, scores, start, weights, rows, count, heads, apart):
    """scores[start + t * G + g] += the sum over r < count of weights[r * G + g] * rows[r * BLOCK + t], t < BLOCK; with
    the tag `apart`, scores[start + g * BLOCK + t]. Of the rows, an odd number, every second is even around the middle
    and the others are odd.
    """
    G = len(heads)
    # sums under way: eight hide the time of a product
    lanes = min(HALF, max(_LANES, 4 * _LANES >> (G - 1).bit_length()))
    signature = types.void(scores, types.intp, weights, rows, types.intp, heads, apart)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, weights, rows = (data(context, builder, signature, arguments, i) for i in (0, 2, 3))
        _, start, _, _, count, _, _ = arguments

        def add(number_of_row: Any, first: Any, sums: list[Any]) -> None:
            row = vector(builder, rows, builder.add(builder.mul(number_of_row, I64(BLOCK)), first), lanes)
            place = builder.mul(number_of_row, I64(G))
            for g, total in enumerate(sums):
                weight = splat(builder, number(builder, weights, builder.add(place, I64(g))), lanes)
                builder.store(add_product(builder, weight, row, builder.load(total)), total)

        def put(before: Any, parts: list[Any], *, backwards: bool) -> None:
            if not len(apart):
                target = builder.add(start, builder.mul(before, I64(G)))
                add_to(target, _interleaved(builder, parts, lanes, backwards=backwards), lanes * G)
                return
            for g, part in enumerate(parts):
                target = builder.add(builder.add(start, before), I64(g * BLOCK))
                add_to(target, shuffle(builder, part, [*range(lanes)][:: -1 if backwards else 1]), lanes)

        def add_to(target: Any, bias: Any, size: int) -> None:
            store(builder, builder.fadd(vector(builder, scores, target, size), bias), scores, target)

        with cgutils.for_range(builder, I64(HALF // lanes)) as chunk:
            behind = builder.mul(chunk.index, I64(lanes))  # tokens between the middle and these
            first = builder.add(I64(HALF), behind)
            none = constant(floats(lanes), [0.0] * lanes)
            even, odd = ([variable(builder, none) for _ in range(G)] for _ in range(2))
            with cgutils.for_range(builder, builder.lshr(count, I64(1))) as loop:
                row = builder.shl(loop.index, I64(1))
                add(row, first, even)
                add(builder.add(row, I64(1)), first, odd)
            add(builder.sub(count, I64(1)), first, even)
            even, odd = ([builder.load(total) for total in sums] for sums in (even, odd))
            put(first, [builder.fadd(a, b) for a, b in zip(even, odd, strict=True)], backwards=False)
            before = builder.sub(I64(HALF - lanes), behind)
            put(before, [builder.fsub(a, b) for a, b in zip(even, odd, strict=True)], backwards=True)
        return context.get_dummy_value()

    return signature, generate


def _interleaved(builder: Any, parts: list[Any], lanes: int, *, backwards: bool) -> Any:
    """Vectors of one head each as one vector, token by token."""
    G = len(parts)
    joined, width = list(parts), lanes
    while len(joined) > 1:  # two at a time, the last with itself where they are odd
        joined = [
            builder.shuffle_vector(a, b, constant(ir.VectorType(I32, 2 * width), [*range(2 * width)]))
            for a, b in zip(joined[::2], [*joined[1::2], joined[-1]], strict=False)
        ]
        width *= 2
    tokens = range(lanes)[::-1] if backwards else range(lanes)
    return shuffle(builder, joined[0], [g * lanes + t for t in tokens for g in range(G)])


@register_jitable
def add_bias(scores, turning, first, count, heads):
    """Add to scores (count, G) of tokens first, first + 1, ... what `turning` says: phasors (G, P, 2), the fast ones
    first, what they are to be multiplied by, and the tables of `pqkv.kernels.turns`.
    """
    G, P = len(heads), turning[0].shape[1]
    if P == 0:
        return
    phasors, turned = scaled_phasors(turning, heads)
    rows, count_of_rows = turning[3], rows_of(turning)
    part = np.empty(BLOCK * G, np.float32)
    done = 0
    while done < count:
        block, offset = (first + done) // BLOCK, (first + done) % BLOCK
        n = min(BLOCK - offset, count - done)
        turn_to_block(turned, phasors, turning, block, heads)
        if n == BLOCK:
            _add_sums(scores, done * G, turned, rows, count_of_rows, heads, ())
        else:
            part[:] = 0.0
            _add_sums(part, 0, turned, rows, count_of_rows, heads, ())
            for i in range(n * G):
                scores[done * G + i] += part[offset * G + i]
        done += n


@register_jitable
def add_bias_of_blocks(scores, turning, first_block, blocks, heads):
    """The same for scores (blocks, G, BLOCK) of whole blocks from `first_block` of a sequence on."""
    if turning[0].shape[1] == 0:
        return
    phasors, turned = scaled_phasors(turning, heads)
    for i in range(blocks):
        turn_to_block(turned, phasors, turning, first_block + i, heads)
        _add_sums(scores, i * len(heads) * BLOCK, turned, turning[3], rows_of(turning), heads, (0,))


@register_jitable
def scaled_phasors(turning, heads):
    """Phasors (P, 2, G), flat, and room for what `turn_to_block` makes of them."""
    given, scale = turning[0], turning[1]
    G, P = len(heads), given.shape[1]
    phasors = np.empty(2 * P * G, np.float32)
    for g in range(G):
        for i in range(P):
            phasors[2 * i * G + g] = given[g, i, 0] * scale
            phasors[(2 * i + 1) * G + g] = given[g, i, 1] * scale
    return phasors, np.empty((2 * P + POLYNOMIALS) * G, np.float32)


@register_jitable
def rows_of(turning):
    """Rows that a block's bias is summed of."""
    return 2 * (turning[0].shape[1] - turning[4].shape[0]) + POLYNOMIALS


@register_jitable
def turn_to_block(turned, phasors, turning, block, heads):
    """What the rows are weighted with in the middle of a block."""
    P, slow = turning[0].shape[1], turning[4]
    fast = P - slow.shape[0]
    _turn(turned, phasors, turning[2][block], P, heads)
    _gather_slow(turned, fast, slow, P - fast, heads)


@intrinsic
def _weigh(typing_context, weights, start, table, gains, first, count, heads):
    """weights[start + t * G ...] *= table[gains[first + t]], t < count."""
    G = len(heads)
    signature = types.void(weights, types.intp, table, gains, types.intp, types.intp, heads)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        weights, table, gains = (data(context, builder, signature, arguments, i) for i in (0, 2, 3))
        _, start, _, _, first, count, _ = arguments
        with cgutils.for_range(builder, count) as loop:
            stored = builder.load(builder.gep(gains, [builder.add(first, loop.index)]))
            gain = splat(builder, number(builder, table, builder.zext(stored, I64)), G)
            place = builder.add(start, builder.mul(loop.index, I64(G)))
            store(builder, builder.fmul(vector(builder, weights, place, G), gain), weights, place)
        return context.get_dummy_value()

    return signature, generate


@register_jitable
def weigh_by_gains(weights, stretch, gains, gain_values, heads):
    """Multiply weights (count, G) of a stretch by the gains of its values; `gains` (pages * Hkv * page_size) is empty
    where there are none.
    """
    P = stretch.page_size
    if not len(gains):
        return
    table = gain_values[stretch.head]
    done = 0
    while done < stretch.length:
        page = np.int64(stretch.table[stretch.first_page + done // P])
        n = min(P, stretch.length - done)
        _weigh(weights, done * len(heads), table, gains, (page * stretch.num_kv_heads + stretch.head) * P, n, heads)
        done += n
