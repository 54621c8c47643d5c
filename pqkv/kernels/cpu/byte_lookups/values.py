"""Sums of a span of coded values for the heads of a group, from tables of bytes."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from pqkv.kernels.cpu.byte_lookups.instructions import (
    F32,
    Portable,
    Value,
    align_stack,
    at,
    called,
    keep,
    load,
    vector_of,
)
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.vector_code import I32, I64, splat


def mix_span(
    path: Portable, shape: Shape, codes: Value, places: Value, groups: Value, line: Value, head_dim: Value,
    table: Value, weights: Value, scales: Value, sums: Value,
) -> None:  # fmt: skip
    """sums[e, g] (D, G, lanes) float32 += for each of `groups` groups of `path.scaled` blocks, scales[group, g] times
    the sum over its tokens of their weights times table[e, code of e's subspace], as lanes hold them (`Portable`).

    places (groups * scaled,) int64: where in `codes` a block's codes of subspace 0 begin, those of the next `line`
    bytes on. table (D, C) int8; weights (groups * scaled, G), as `keep_weights` laid each out; scales (groups, G).
    """
    builder, S = path.builder, shape.d_sub
    align_stack(builder)
    with cgutils.for_range(builder, builder.udiv(head_dim, I64(S))) as subspace:
        ahead = builder.mul(subspace.index, line)
        for some in _components(path, shape):
            pairs = [(s, g) for s in some for g in range(shape.heads)]
            first = builder.mul(subspace.index, I64(S))
            rows = [builder.add(first, I64(s)) for s in range(S)]

            def place(s: int, g: int, rows: list[Value] = rows) -> Value:
                row = builder.add(builder.mul(rows[s], I64(shape.heads)), I64(g))
                return builder.mul(row, I64(4 * path.lanes))

            kind = vector_of(F32, path.lanes)
            with cgutils.for_range(builder, groups) as group:
                made = _group(path, shape, some, codes, places, group.index, ahead, rows, table, weights)
                for s, g in pairs:
                    number = builder.sitofp(path.folded(made[s, g]), kind)
                    scale = load(builder, scales, _offset(builder, group.index, shape.heads, g, 4), F32)
                    factor, before = splat(builder, scale, path.lanes), load(builder, sums, place(s, g), kind)
                    # through memory: registers are for the integers
                    total = called(builder, f"llvm.fma.v{path.lanes}f32", kind, [number, factor, before])
                    keep(builder, total, sums, place(s, g))


def _components(path: Portable, shape: Shape) -> list[range]:
    """Components of a subspace, as many at a time as leave room for their sums in half of the registers."""
    most = max(1, path.registers // 2 // (path.value_sums * shape.heads))
    return [range(s, min(s + most, shape.d_sub)) for s in range(0, shape.d_sub, most)]


def _group(
    path: Portable, shape: Shape, some: range, codes: Value, places: Value, group: Value, ahead: Value,
    rows: list[Value], table: Value, weights: Value,
) -> dict[tuple[int, int], list[Value]]:  # fmt: skip
    """The integer sums of blocks that share a scale, by component and head."""
    builder = path.builder
    none = ir.Constant(vector_of(I32, path.lanes), [0] * path.lanes)
    sums = {(s, g): [none] * path.value_sums for s in some for g in range(shape.heads)}
    for i in range(path.scaled):
        block = builder.add(builder.mul(group, I64(path.scaled)), I64(i))
        start = at(builder, codes, load(builder, places, builder.shl(block, I64(3)), I64))
        for part in range(path.parts):
            own = path.codes(start, ahead, part, shape.nbits)
            for s in some:
                row = builder.mul(rows[s], I64(shape.entries))
                components = path.components(path.look_up(own, table, row, shape.entries))
                for g in range(shape.heads):
                    given = path.weights(weights, _offset(builder, block, shape.heads, g, path.weight_bytes), part)
                    sums[s, g] = path.add_values(sums[s, g], components, given)
    return sums


def _offset(builder: Value, block: Value, heads: int, g: int, size: int) -> Value:
    """Where what has `size` bytes a block and head begins."""
    return builder.mul(builder.add(builder.mul(block, I64(heads)), I64(g)), I64(size))
