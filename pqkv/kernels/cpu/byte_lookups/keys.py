"""Scores of a block of coded keys for the heads of a group, from tables of bytes."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from itertools import pairwise, product

from llvmlite import ir
from numba.core import cgutils

from pqkv.kernels.cpu.byte_lookups.instructions import (
    BLOCK,
    F32,
    Asked,
    Portable,
    Steps,
    Value,
    align_stack,
    at,
    joined,
    keep,
    load,
    pick,
    stay_in_order,
    vector_of,
)
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.vector_code import I32, I64, splat

_FEW_HEADS = 4  # whose sums, sixteen vectors, stay in registers beside two operands of four


def score_block(
    path: Portable, shape: Shape, codes: Value, line: Value, head_dim: Value, table: Value, query: Value,
    offsets: Value, scales: Value, scores: Value, asked: Sequence[Asked],
) -> None:  # fmt: skip
    """scores (G, 64) float32 = (the sum over elements e of query[g, e] * table[e, code of e's subspace] - offsets[g])
    * scales[g].

    `codes` points to the block's codes of subspace 0, those of the next lie `line` bytes on; table (D, C) uint8, query
    (G, D) signed, of `path.query_bytes`, offsets (G,) int32, scales (G,) float32. D is a multiple of 4.
    The codes `asked` are asked for meanwhile.
    """
    align_stack(path.builder)
    if not path.roomy:  # products take so long there that what is asked for at once is no more than is waited for
        with cgutils.for_range(path.builder, path.builder.udiv(head_dim, I64(shape.d_sub))) as loop:
            for other in asked:
                other.ask(loop.index, 1)
        asked = ()
    for part, heads in product(range(path.parts), _heads_at_once(path, shape.heads)):
        sums = _sums(path, shape, codes, line, head_dim, table, query, part, heads, asked)
        asked = ()  # once
        for g, found in zip(heads, sums, strict=True):
            _finish(path, found, offsets, scales, scores, g, part)


def _heads_at_once(path: Portable, heads: int) -> list[range]:
    """Heads whose sums grow together: four where registers hold an operand besides (`roomy`), eight where one of four
    components pays for sums on the stack; else all of them.
    """
    count = -(-heads // (_FEW_HEADS * path.key_components // 2)) if path.roomy else 1
    bounds = [heads * i // count for i in range(count + 1)]
    return [range(*pair) for pair in pairwise(bounds)]


def _sums(
    path: Portable, shape: Shape, codes: Value, line: Value, head_dim: Value, table: Value, query: Value, part: int,
    heads: range, asked: Sequence[Asked],
) -> list[list[Value]]:  # fmt: skip
    """Of a part of a block, by head, the integer sums of all elements, in four vectors."""
    builder, per, lanes = path.builder, path.key_components, path.width // 4
    none = ir.Constant(vector_of(I32, lanes), [0] * lanes)
    sums = [[cgutils.alloca_once_value(builder, none) for _ in range(4)] for _ in heads]
    elements = shape.subspaces * shape.d_sub  # of a turn of the loop
    turns = builder.udiv(head_dim, I64(elements))
    operand = partial(_operand, path, shape, codes, line, table, part)
    ready = _Ready(builder, Steps(operand(I64(0), 0)).made()) if path.roomy and len(heads) <= _FEW_HEADS else None
    with cgutils.for_range(builder, turns) as loop:
        for other in asked:
            other.ask(builder.mul(loop.index, I64(shape.subspaces)), shape.subspaces)
        for e in range(0, elements, per):
            if ready is None:
                own, following = Steps(operand(loop.index, e)).made(), None
            else:
                end = e + per == elements
                own = ready.taken()
                following = Steps(
                    operand(_next(builder, loop.index, turns), 0) if end else operand(loop.index, e + per)
                )
            first = builder.add(builder.mul(loop.index, I64(elements)), I64(e))
            for g, totals in zip(heads, sums, strict=True):
                if following is not None:
                    stay_in_order(builder)
                    following.emit(-(-(per + 1) // len(heads)))
                element = builder.add(first, builder.mul(head_dim, I64(g)))
                numbers = load(builder, query, builder.mul(element, I64(path.query_bytes)), I32)
                wanted = builder.bitcast(splat(builder, numbers, lanes), own[0].type)
                for total, components in zip(totals, own, strict=True):
                    builder.store(path.add_keys(builder.load(total), components, wanted), total)
            if ready is not None and following is not None:
                ready.put(following.made())
    return [[builder.load(total) for total in totals] for totals in sums]


def _operand(
    path: Portable, shape: Shape, codes: Value, line: Value, table: Value, part: int, turn: Value, e: int
) -> Generator[None, None, list[Value]]:
    """Steps to what products take of elements `e` on of a turn of the loop, `path.key_components` of them."""
    builder, S = path.builder, shape.d_sub
    own: dict[int, Value] = {}  # codes by subspace
    found = []
    for i in range(e, e + path.key_components):
        if i // S not in own:
            subspace = builder.add(builder.mul(turn, I64(shape.subspaces)), I64(i // S))
            own[i // S] = path.codes(codes, builder.mul(subspace, line), part, shape.nbits)
        row = builder.add(builder.mul(turn, I64(shape.subspaces * S)), I64(i))
        found.append(path.look_up(own[i // S], table, builder.mul(row, I64(shape.entries)), shape.entries))
        yield
    return path.key_operand(found)


def _next(builder: Value, turn: Value, turns: Value) -> Value:
    """The turn after this one; the last one again after the last: nothing behind a block is read."""
    following = builder.add(turn, I64(1))
    return builder.select(builder.icmp_unsigned("<", following, turns), following, turn)


class _Ready:
    """Vectors that one turn of a loop makes for the next."""

    def __init__(self, builder: Value, vectors: list[Value]) -> None:
        self._builder = builder
        self._places = [cgutils.alloca_once(builder, vector.type) for vector in vectors]
        self.put(vectors)

    def put(self, vectors: list[Value]) -> None:
        for vector, place in zip(vectors, self._places, strict=True):
            self._builder.store(vector, place)

    def taken(self) -> list[Value]:
        return [self._builder.load(place) for place in self._places]


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
