"""From scores to the weights that values are mixed with: softmax in float32, then integers.

Some blocks share a scale, the largest of their weights over the largest integer (`Portable`). What is made here is the
same on every path: vectors of sixteen floats, fused products where they are written, no others.
"""

from __future__ import annotations

from numba.core import cgutils

from pqkv.kernels.cpu.byte_lookups.instructions import (
    BLOCK,
    F32,
    Portable,
    Value,
    at,
    called,
    keep,
    load,
    pick,
    same,
    vector_of,
)
from pqkv.kernels.cpu.softmax import exp2
from pqkv.vector_code import I32, I64, splat

LANES = 16
_VECTORS = BLOCK // LANES  # of a block
_KIND = vector_of(F32, LANES)
_MAGIC = 12_582_912.0  # 1.5 * 2**23: added to a number it leaves the nearest whole one in the lowest bits
_LEAST = 2.0**-100  # a block whose largest weight, against the stretch's largest, is below adds nothing


def _floats(value: float) -> Value:
    return same(F32, LANES, value)


def _fma(builder: Value, a: Value, b: Value, c: Value) -> Value:
    return called(builder, f"llvm.fma.v{LANES}f32", _KIND, [a, b, c])


def largest(builder: Value, scores: Value, blocks: Value, heads: int, top: Value) -> None:
    """top (G,) = the largest of scores (blocks, G, 64); NaN is passed over."""
    with cgutils.for_range(builder, I64(heads)) as head:
        best = cgutils.alloca_once_value(builder, _floats(float("-inf")))
        with cgutils.for_range(builder, blocks) as block:
            for i in range(_VECTORS):
                row = load(builder, scores, _score(builder, block.index, heads, head.index, i), _KIND)
                builder.store(_greater(builder, row, builder.load(best)), best)
        keep(builder, _reduced(builder, builder.load(best)), top, builder.shl(head.index, I64(2)))


def weigh(
    path: Portable, heads: int, gained: bool, scores: Value, groups: Value, top: Value, gains: Value, inverse: Value,
    weights: Value, scales: Value, mass: Value, norm: Value,
) -> None:  # fmt: skip
    """Of each of `groups` groups of `path.scaled` blocks of scores (groups * scaled, G, 64): weights
    2**(score - top[g]), times the gains of their tokens (groups * scaled, 64) where `gained`, as integers
    (`keep_weights`) with scales (groups, G).

    mass (G, 16) += the weights before gains, norm (G, 16) += what the integers stand for, before gains: times
    `inverse`, laid out as gains.
    """
    builder = path.builder
    with cgutils.for_range(builder, groups) as group, cgutils.for_range(builder, I64(heads)) as head:
        own = builder.mul(head.index, I64(4 * LANES))
        highest = splat(builder, load(builder, top, builder.shl(head.index, I64(2)), F32), LANES)
        total, biggest = load(builder, mass, own, _KIND), _floats(0.0)
        rows = []
        for block in range(path.scaled):
            number = builder.add(builder.mul(group.index, I64(path.scaled)), I64(block))
            for i in range(_VECTORS):
                place = _score(builder, number, heads, head.index, i)
                row = exp2(builder, builder.fsub(load(builder, scores, place, _KIND), highest), LANES, _fma)
                total = builder.fadd(total, row)
                if gained:
                    gain = load(builder, gains, _token(builder, number, i), _KIND)
                    row = builder.fmul(row, gain)
                biggest = _greater(builder, row, biggest)
                rows.append(row)
        keep(builder, total, mass, own)
        most = _reduced(builder, biggest)
        counts = builder.fcmp_ordered(">", most, F32(_LEAST))
        up = builder.select(counts, builder.fdiv(F32(path.largest_weight), most), F32(0.0))
        scale = builder.select(counts, builder.fmul(most, F32(1 / path.largest_weight)), F32(0.0))
        place = builder.add(builder.mul(group.index, I64(heads)), head.index)
        keep(builder, scale, scales, builder.shl(place, I64(2)))
        _as_integers(
            path, heads, gained, rows, group.index, head.index, splat(builder, up, LANES), scale, inverse, weights, norm
        )


def _as_integers(
    path: Portable, heads: int, gained: bool, rows: list[Value], group: Value, head: Value, up: Value, scale: Value,
    inverse: Value, weights: Value, norm: Value,
) -> None:  # fmt: skip
    builder, found = path.builder, _floats(0.0)
    for block in range(path.scaled):
        number = builder.add(builder.mul(group, I64(path.scaled)), I64(block))
        words = []
        for i in range(_VECTORS):
            shifted = _fma(builder, rows[block * _VECTORS + i], up, _floats(_MAGIC))
            words.append(builder.bitcast(shifted, vector_of(I32, LANES)))
            whole = builder.fsub(shifted, _floats(_MAGIC))
            if gained:
                found = _fma(builder, whole, load(builder, inverse, _token(builder, number, i), _KIND), found)
            else:
                found = builder.fadd(found, whole)
        place = builder.mul(builder.add(builder.mul(number, I64(heads)), head), I64(path.weight_bytes))
        path.keep_weights(words, at(builder, weights, place), I64(0))
    own = builder.mul(head, I64(4 * LANES))
    keep(builder, _fma(builder, found, splat(builder, scale, LANES), load(builder, norm, own, _KIND)), norm, own)


def _score(builder: Value, block: Value, heads: int, head: Value, i: int) -> Value:
    """Where vector i of a block's scores of one head begins."""
    row = builder.add(builder.mul(block, I64(heads)), head)
    return builder.add(builder.mul(row, I64(4 * BLOCK)), I64(4 * LANES * i))


def _token(builder: Value, block: Value, i: int) -> Value:
    return builder.add(builder.mul(block, I64(4 * BLOCK)), I64(4 * LANES * i))


def _greater(builder: Value, a: Value, b: Value) -> Value:
    """The greater of each pair of numbers; b where a is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _reduced(builder: Value, x: Value) -> Value:
    """The greatest lane, of which none is NaN: LLVM's own reduction would look for NaN, a lane after the other."""
    lanes = LANES
    while lanes > 1:
        lanes //= 2
        x = _greater(builder, pick(builder, x, None, range(lanes)), pick(builder, x, None, range(lanes, 2 * lanes)))
    return builder.extract_element(x, I32(0))
