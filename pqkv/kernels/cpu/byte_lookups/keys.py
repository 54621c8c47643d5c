"""Scores of a block of coded keys for the heads of a group, from tables of bytes."""

from __future__ import annotations

from llvmlite import ir
from numba.core import cgutils

from pqkv.kernels.cpu.byte_lookups.instructions import (
    BLOCK,
    F32,
    Portable,
    Value,
    align_stack,
    at,
    joined,
    keep,
    load,
    pick,
    vector_of,
)
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.vector_code import I32, I64, splat


def score_block(
    path: Portable, shape: Shape, codes: Value, line: Value, head_dim: Value, table: Value, query: Value,
    offsets: Value, scales: Value, scores: Value,
) -> None:  # fmt: skip
    """scores (G, 64) float32 = (the sum over elements e of query[g, e] * table[e, code of e's subspace] - offsets[g])
    * scales[g].

    `codes` points to the block's codes of subspace 0, those of the next lie `line` bytes on; table (D, C) uint8, query
    (G, D) signed, of `path.query_bytes`, offsets (G,) int32, scales (G,) float32. D is a multiple of 4.
    """
    builder, G, S, U = path.builder, shape.heads, shape.d_sub, shape.subspaces
    align_stack(builder)
    lanes = path.width // 4
    for part in range(path.parts):
        none = ir.Constant(vector_of(I32, lanes), [0] * lanes)
        sums = [[cgutils.alloca_once_value(builder, none) for _ in range(4)] for _ in range(G)]
        with cgutils.for_range(builder, builder.udiv(head_dim, I64(U * S))) as loop:
            place = builder.mul(builder.mul(loop.index, I64(U)), line)
            own = [
                path.codes(codes, builder.add(place, builder.mul(line, I64(u))), part, shape.nbits) for u in range(U)
            ]
            first = builder.mul(loop.index, I64(U * S))
            for four in range(0, U * S, 4):
                found = [
                    path.look_up(own[e // S], table, _row(builder, first, e, shape.entries), shape.entries)
                    for e in range(four, four + 4)
                ]
                operands = path.key_operands(found)
                for g in range(G):
                    for i, own_sums in enumerate(operands):
                        next_ones = builder.add(first, I64(four + 4 // len(operands) * i))
                        element = builder.add(next_ones, builder.mul(head_dim, I64(g)))
                        numbers = load(builder, query, builder.mul(element, I64(path.query_bytes)), I32)
                        wanted = builder.bitcast(splat(builder, numbers, lanes), own_sums[0].type)
                        for k in range(4):
                            total = path.add_keys(builder.load(sums[g][k]), own_sums[k], wanted)
                            builder.store(total, sums[g][k])
        for g in range(G):
            _finish(path, [builder.load(total) for total in sums[g]], offsets, scales, scores, g, part)


def _row(builder: Value, first: Value, element: int, entries: int) -> Value:
    return builder.mul(builder.add(first, I64(element)), I64(entries))


def _finish(path: Portable, sums: list[Value], offsets: Value, scales: Value, scores: Value, g: int, part: int) -> None:
    """The scores of a part for one head, in the order of tokens."""
    builder, lanes = path.builder, path.width // 4
    offset = splat(builder, load(builder, offsets, 4 * g, I32), lanes)
    scale = splat(builder, load(builder, scales, 4 * g, F32), lanes)
    kind = vector_of(F32, lanes)
    found = [builder.fmul(builder.sitofp(builder.sub(total, offset), kind), scale) for total in sums]
    tokens = [token for k in range(4) for token in path.score_tokens(k)]
    order = [tokens.index(token) for token in range(path.width)]
    in_order = pick(builder, joined(builder, found), None, order)
    keep(builder, in_order, at(builder, scores, 4 * (g * BLOCK + part * path.width)), 0)
