"""Sums of a span of coded values for the heads of a group, from tables of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from llvmlite import ir
from numba.core import cgutils

from pqkv.kernels.cpu.byte_lookups.instructions import (
    F32,
    Asked,
    Portable,
    Value,
    align_stack,
    at,
    called,
    keep,
    load,
    stay_in_order,
    vector_of,
)
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.vector_code import I32, I64, splat


def mix_span(
    path: Portable, shape: Shape, codes: Value, places: Value, groups: Value, line: Value, head_dim: Value,
    table: Value, weights: Value, scales: Value, sums: Value, asked: Value,
) -> None:  # fmt: skip
    """sums[e, g] (D, G, lanes) float32 += for each of `groups` groups of `path.scaled` blocks, scales[group, g] times
    the sum over its tokens of their weights times table[e, code of e's subspace], as lanes hold them (`Portable`).

    places (groups * scaled,) int64: where in `codes` a block's codes of subspace 0 begin, those of the next `line`
    bytes on. table (D, C) int8; weights (groups * scaled, G), as `keep_weights` laid each out; scales (groups, G).
    asked (groups * scaled,) int64: the address of another block's codes, laid out alike, to ask for with each.
    """
    builder, subspaces = path.builder, subspaces_at_once(path, shape)
    elements = subspaces * shape.d_sub  # of a turn of the loop
    align_stack(builder)
    kind = vector_of(F32, path.lanes)
    with cgutils.for_range(builder, builder.udiv(head_dim, I64(elements))) as turn:
        for some in _components(path, shape, elements):
            with cgutils.for_range(builder, groups) as group:
                blocks = [builder.add(builder.mul(group.index, I64(path.scaled)), I64(i)) for i in range(path.scaled)]
                for block in blocks if some.start == 0 else ():
                    start = load(builder, asked, builder.shl(block, I64(3)), I64)
                    Asked(builder, start, line).ask(builder.mul(turn.index, I64(subspaces)), subspaces)
                side = _Codes(codes, places, line, table, builder.mul(turn.index, I64(elements)))
                for s, g, made in (_by_head if path.roomy else _by_block)(path, shape, some, side, blocks, weights):
                    number = builder.sitofp(path.folded(made), kind)
                    scale = load(builder, scales, _offset(builder, group.index, shape.heads, g, 4), F32)
                    row = builder.add(builder.mul(side.row(builder, s), I64(shape.heads)), I64(g))
                    place = builder.mul(row, I64(4 * path.lanes))
                    factor, before = splat(builder, scale, path.lanes), load(builder, sums, place, kind)
                    # through memory: registers are for the integers
                    total = called(builder, f"llvm.fma.v{path.lanes}f32", kind, [number, factor, before])
                    keep(builder, total, sums, place)


def subspaces_at_once(path: Portable | type[Portable], shape: Shape) -> int:
    """Subspaces that a turn of the loop takes."""
    return shape.subspaces if path.roomy else 1


class _Codes(NamedTuple):
    """Where codes and tables are; `first` is the first element of a turn."""

    codes: Value
    places: Value
    line: Value
    table: Value
    first: Value

    def row(self, builder: Value, s: int) -> Value:
        """Element s of the turn."""
        return builder.add(self.first, I64(s))


Sums = Iterator[tuple[int, int, list[Value]]]  # component, head, integer sums


def _components(path: Portable, shape: Shape, elements: int) -> list[range]:
    """Components of a turn, as many at a time as have room: for what is looked up of a group's blocks where heads come
    one after another, else for the sums of all heads in half of sixteen registers.
    """
    most = 4 if path.roomy else max(1, 8 // (path.value_sums * shape.heads))
    return [range(s, min(s + most, elements)) for s in range(0, elements, most)]


def _by_block(path: Portable, shape: Shape, some: range, side: _Codes, blocks: list[Value], weights: Value) -> Sums:
    """All heads' sums grow block by block: each look-up is used up at once."""
    sums = {(s, g): _none(path) for s in some for g in range(shape.heads)}
    for block, part in product(blocks, range(path.parts)):
        found = _looked_up(path, shape, some, side, [block], part)
        for g in range(shape.heads):
            given = path.weights(weights, _offset(path.builder, block, shape.heads, g, path.weight_bytes), part)
            for s in some:
                sums[s, g] = path.add_values(sums[s, g], found[s][0], given)
    for (s, g), made in sums.items():
        yield s, g, made


def _by_head(path: Portable, shape: Shape, some: range, side: _Codes, blocks: list[Value], weights: Value) -> Sums:
    """All look-ups of the blocks first, then a head's sums after the other's: tables and weights are read once for
    several of them, where reading binds.
    """
    builder = path.builder
    stay_in_order(builder)
    found = _looked_up(path, shape, some, side, blocks, 0)
    for g in range(shape.heads):
        stay_in_order(builder)
        sums = {s: _none(path) for s in some}
        for i, block in enumerate(blocks):
            given = path.weights(weights, _offset(builder, block, shape.heads, g, path.weight_bytes), 0)
            for s in some:
                sums[s] = path.add_values(sums[s], found[s][i], given)
        for s in some:
            yield s, g, sums[s]


def _none(path: Portable) -> list[Value]:
    return [ir.Constant(vector_of(I32, path.lanes), [0] * path.lanes)] * path.value_sums


def _looked_up(
    path: Portable, shape: Shape, some: range, side: _Codes, blocks: list[Value], part: int
) -> dict[int, list[list[Value]]]:
    """By component, of each block the operands of `add_values`."""
    builder, S = path.builder, shape.d_sub
    own: dict[int, list[Value]] = {}  # codes by subspace
    found = {}
    for s in some:
        if s // S not in own:
            ahead = builder.mul(builder.udiv(side.row(builder, s), I64(S)), side.line)
            starts = [
                at(builder, side.codes, load(builder, side.places, builder.shl(block, I64(3)), I64)) for block in blocks
            ]
            own[s // S] = [path.codes(start, ahead, part, shape.nbits) for start in starts]
        row = builder.mul(side.row(builder, s), I64(shape.entries))
        found[s] = [path.components(path.look_up(codes, side.table, row, shape.entries)) for codes in own[s // S]]
        if path.roomy:
            stay_in_order(builder)
    return found


def _offset(builder: Value, block: Value, heads: int, g: int, size: int) -> Value:
    """Where what has `size` bytes a block and head begins."""
    return builder.mul(builder.add(builder.mul(block, I64(heads)), I64(g)), I64(size))
