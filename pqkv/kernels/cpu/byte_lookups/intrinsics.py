"""The steps of attention on byte tables as Numba intrinsics. Tags (`vector_code.tag`) say what they are compiled for:
`path` is a place in `cpu_path.PATHS` (`path_tag`), so that compiled code that is kept belongs to one path.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from pqkv.cpu_path import PATHS
from pqkv.kernels.cpu.byte_lookups import keys, values, weights
from pqkv.kernels.cpu.byte_lookups.avx2 import Avx2
from pqkv.kernels.cpu.byte_lookups.avx512 import Avx512
from pqkv.kernels.cpu.byte_lookups.instructions import F32, Asked, Portable, at, keep, load, pick, vector_of
from pqkv.kernels.cpu.byte_lookups.one_plane import ONE_PLANE
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.kernels.cpu.byte_lookups.vnni import Vnni
from pqkv.vector_code import I64, data, prefetch, tag

TWO = 2  # planes
EMITTERS: dict[str, type[Portable]] = {"portable": Portable, "avx2": Avx2, "vnni": Vnni, "avx512": Avx512}


def emitter_of(name: str, planes: int) -> type[Portable]:
    """What emits a path's code, with two planes of bytes for queries and weights, or one."""
    return (EMITTERS if planes == TWO else ONE_PLANE)[name]


def path_tag(name: str, planes: int) -> tuple[int, ...]:
    """A tag of both."""
    return tag(PATHS.index(name) + (0 if planes == TWO else len(PATHS)))


def _emitter(builder: Any, path: Any) -> Portable:
    place = len(path)
    return emitter_of(PATHS[place % len(PATHS)], TWO if place < len(PATHS) else 1)(builder)


def _pointers(context: Any, builder: Any, signature: Any, arguments: Any, names: int) -> list[Any]:
    return [data(context, builder, signature, arguments, i) for i in range(names)]


@intrinsic
def score_block(
    typing_context, scores, codes, table, query, offsets, scales, block, place, line, table_place, head_dim, soon,
    soon_line, later, later_line, path, nbits, d_sub, heads
):  # fmt: skip
    """See `keys.score_block`: of block `block`, whose codes begin at codes[place], its table at table[table_place]. The
    codes at addresses `soon` and `later` are asked for meanwhile.
    """
    signature = types.void(scores, codes, table, query, offsets, scales, *[types.int64] * 9, path, nbits, d_sub, heads)
    shape = Shape(len(nbits), len(d_sub), len(heads))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, codes, table, query, offsets, scales = _pointers(context, builder, signature, arguments, 6)
        block, place, line, table_place, head_dim, *asked = arguments[6:15]
        own = at(builder, scores, builder.mul(block, I64(4 * 64 * shape.heads)))
        keys.score_block(
            _emitter(builder, signature.args[15]), shape, at(builder, codes, place), line, head_dim,
            at(builder, table, table_place), query, offsets, scales, own,
            [Asked(builder, *asked[:2]), Asked(builder, *asked[2:])],
        )  # fmt: skip
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def mix_span(
    typing_context, sums, codes, places, table, integers, scales, asked, groups, line, table_place, head_dim, path,
    nbits, d_sub, heads
):  # fmt: skip
    """See `values.mix_span`. Blocks whose codes begin at addresses `asked`, as many, are asked for meanwhile."""
    signature = types.void(
        sums, codes, places, table, integers, scales, asked, *[types.int64] * 4, path, nbits, d_sub, heads
    )
    shape = Shape(len(nbits), len(d_sub), len(heads))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, codes, places, table, integers, scales, asked = _pointers(context, builder, signature, arguments, 7)
        groups, line, table_place, head_dim = arguments[7:11]
        values.mix_span(
            _emitter(builder, signature.args[11]), shape, codes, places, groups, line, head_dim,
            at(builder, table, table_place), integers, scales, sums, asked,
        )  # fmt: skip
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def prefetch_bytes(typing_context, codes, start, count):
    """Ask for `count` bytes from codes[start] on, into the second-level cache."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = data(context, builder, signature, arguments, 0)
        with cgutils.for_range(builder, builder.udiv(builder.add(arguments[2], I64(63)), I64(64))) as loop:
            place = builder.add(arguments[1], builder.mul(loop.index, I64(64)))
            prefetch(builder, builder.gep(pointer, [place]), 2)
        return context.get_dummy_value()

    return types.void(codes, types.int64, types.int64), generate


@intrinsic
def sum_lanes(typing_context, numbers, sums, count, lanes):
    """sums (count,) float32 of the rows of numbers (count, L), L the length of the tag, of which `count` is a multiple.

    L rows at a time: neighbours in two rows together are a row, until there is one, where each row has a lane.
    """
    L = len(lanes)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        numbers, sums = _pointers(context, builder, signature, arguments, 2)
        with cgutils.for_range(builder, builder.udiv(arguments[2], I64(L))) as loop:
            place = builder.mul(loop.index, I64(4 * L))
            start = at(builder, numbers, builder.mul(place, I64(L)))
            rows = [load(builder, start, 4 * L * i, vector_of(F32, L)) for i in range(L)]
            while len(rows) > 1:
                rows = [
                    builder.fadd(*(pick(builder, a, b, range(i, 2 * L, 2)) for i in range(2)))
                    for a, b in zip(rows[::2], rows[1::2], strict=True)
                ]
            keep(builder, rows[0], sums, place)
        return context.get_dummy_value()

    return types.void(numbers, sums, types.int64, lanes), generate


@intrinsic
def largest(typing_context, scores, top, blocks, heads):
    """See `weights.largest`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, top = _pointers(context, builder, signature, arguments, 2)
        weights.largest(builder, scores, arguments[2], len(heads), top)
        return context.get_dummy_value()

    return types.void(scores, top, types.int64, heads), generate


@intrinsic
def weigh(
    typing_context, scores, top, gains, inverse, integers, scales, mass, norm, first, groups, path, heads, gained
):  # fmt: skip
    """See `weights.weigh`, of scores from block `first` on; `gained` is a tag of length 0 or 1."""
    signature = types.void(
        scores, top, gains, inverse, integers, scales, mass, norm, types.int64, types.int64, path, heads, gained
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, *others = _pointers(context, builder, signature, arguments, 8)
        top, gains, inverse, integers, scales, mass, norm = others
        G = len(heads)
        own = at(builder, scores, builder.mul(arguments[8], I64(4 * 64 * G)))
        weights.weigh(
            _emitter(builder, signature.args[10]), G, bool(len(gained)), own, arguments[9], top, gains, inverse,
            integers, scales, mass, norm,
        )  # fmt: skip
        return context.get_dummy_value()

    return signature, generate
