"""The vector code of `exact_code` and `exact_dots` as functions that Numba compiles.

Tags (`vector_code.tag`): `heads` of a group; `rest`, the numbers at the end of a row that do not fill what is read at
once; `kind` of number; `form`, which of `exact_form.FORMS` it is compiled for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic, register_jitable

from pqkv.kernels.cpu.exact_code import Rows, emit_scores, emit_values
from pqkv.kernels.cpu.exact_dots import PLANES, emit_pair_scores, emit_pair_values, emit_rounded
from pqkv.kernels.cpu.exact_form import FLOAT32, FORMS, Form, uses_dots, width_of
from pqkv.vector_code import chosen, data, tag

Tags = tuple[Any, ...]


def form_tags(head_dim: int, kind: int, form: str) -> tuple[Tags, Tags, Tags]:
    """Tags of what a row of numbers leaves over, of their kind, and of a form by its name."""
    place = list(FORMS).index(form)
    return tag(head_dim % width_of(kind, FORMS[form])), tag(kind), tag(place)


def _form(form: Any) -> Form:
    return list(FORMS.values())[len(form)]


@intrinsic
def score_rows(
    typing_context, scores, place, query, rows, length, offset, count, later, ahead, heads, rest, kind, form
):
    """scores[place + t * G + g] of the `count` > 0 rows of `length` numbers that begin at rows[offset]; those at
    later[ahead] are asked for. See `emit_scores`.
    """
    sizes = _form(form), len(kind), len(rest), len(heads)
    signature = types.void(
        scores, types.intp, query, rows, *[types.intp] * 3, later, types.intp, heads, rest, kind, form
    )

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, query, rows, later = (data(context, builder, signature, arguments, i) for i in (0, 2, 3, 7))
        length, offset, count = arguments[4:7]
        rows = _rows(builder, sizes[1], rows, length, offset, count, builder.gep(later, [arguments[8]]))
        given = builder.gep(scores, [arguments[1]]), query, rows
        if uses_dots(sizes[1], sizes[0]):
            emit_pair_scores(builder, sizes[0], *sizes[2:], *given)
        else:
            emit_scores(builder, *sizes, *given)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def add_values(
    typing_context, sums, weights, place, stride, rows, length, offset, count, later, ahead, heads, rest, kind, form
):
    """sums += the `count` rows that begin at rows[offset] by the weights from `place` on, of which `prepare_weights`
    said how far apart those of two heads are. See `emit_values`.
    """
    sizes = _form(form), len(kind), len(rest), len(heads)
    numbers = [types.intp] * 3
    signature = types.void(sums, weights, *numbers[:2], rows, *numbers, later, types.intp, heads, rest, kind, form)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, weights, rows, later = (data(context, builder, signature, arguments, i) for i in (0, 1, 4, 8))
        weights = builder.gep(weights, [arguments[2]])
        length, offset, count = arguments[5:8]
        rows = _rows(builder, sizes[1], rows, length, offset, count, builder.gep(later, [arguments[9]]))
        if uses_dots(sizes[1], sizes[0]):
            emit_pair_values(builder, sizes[0], *sizes[2:], sums, weights, arguments[3], rows)
        else:
            emit_values(builder, *sizes, sums, weights, rows)
        return context.get_dummy_value()

    return signature, generate


def _rows(builder: Any, kind: int, rows: Any, length: Any, offset: Any, count: Any, ahead: Any) -> Rows:
    return Rows(builder.gep(rows, [offset]), length, count, ahead, 4 if kind == FLOAT32 else 2)


@intrinsic
def round_weights(typing_context, rounded, stride, weights, count, heads):
    """See `emit_rounded`; `rounded` is uint16."""
    G = len(heads)
    signature = types.void(rounded, types.intp, weights, types.intp, heads)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rounded, weights = (data(context, builder, signature, arguments, i) for i in (0, 2))
        emit_rounded(builder, G, rounded, arguments[1], weights, arguments[3])
        return context.get_dummy_value()

    return signature, generate


@chosen
def query_room(order, heads, kind, form):
    """Room for the queries of a group, float32, as the rows of `query_order` fill registers."""
    if uses_dots(len(kind), _form(form)):
        return lambda order, heads, kind, form: np.empty(order.size * len(heads) * PLANES // 2, np.float32)
    return lambda order, heads, kind, form: np.empty(order.size * len(heads), np.float32)


@chosen
def prepare_query(prepared, query, first_head, order, heads, kind, form):
    """Fill `query_room` from the queries of a sequence, (Hq, D)."""
    return _paired_query if uses_dots(len(kind), _form(form)) else _plain_query


def _plain_query(prepared, query, first_head, order, heads, kind, form):
    V, L = order.shape
    for v in range(V):
        for g in range(len(heads)):
            start = (v * len(heads) + g) * L
            for i in range(L):
                d = order[v, i]
                prepared[start + i] = query[first_head + g, d] if d >= 0 else np.float32(0.0)


def _paired_query(prepared, query, first_head, order, heads, kind, form):
    V, L = order.shape
    halves, pair, planes = prepared.view(np.uint16), np.empty(1, np.float32), PLANES
    word = pair.view(np.uint32)
    for v in range(V):
        for g in range(len(heads)):
            for i in range(L):
                d = order[v, i]
                left = query[first_head + g, d] if d >= 0 else np.float32(0.0)
                for p in range(planes):
                    pair[0] = left
                    rounded = nearest_half(word[0])
                    word[0] = rounded << np.uint32(16)
                    halves[((v * planes + p) * len(heads) + g) * L + i] = rounded
                    left -= pair[0]


@register_jitable
def nearest_half(bits):
    """The bfloat16 nearest to a float32, as bits, ties to even; NaN stays NaN."""
    if bits & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
        return np.uint32(0x7FC0)
    return (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)


@chosen
def weight_room(count, heads, kind, form):
    """Room for what `prepare_weights` makes of the weights of `count` tokens."""
    if uses_dots(len(kind), _form(form)):
        return lambda count, heads, kind, form: np.empty((count + 8) * len(heads), np.uint16)
    return lambda count, heads, kind, form: np.empty(0, np.float32)


@chosen
def prepare_weights(room, weights, count, heads, kind, form):
    """Weights (count, G) as `add_values` takes them: (array, how far apart the weights of two tokens are, and those of
    two heads). `weights` is longer by 8 tokens than what it holds.
    """
    return _rounded_weights if uses_dots(len(kind), _form(form)) else _same_weights


def _same_weights(room, weights, count, heads, kind, form):
    return weights, len(heads), 1


def _rounded_weights(room, weights, count, heads, kind, form):
    stride = len(room) // len(heads)
    round_weights(room, stride, weights, count, heads)
    return room, 1, stride
