"""Rows of exact keys and values, each held by a team of lanes: where they lie, and their products."""

from typing import Any, NamedTuple

from numba import cuda, float32, int32, int64, uint64

from pqkv.kernels.cuda.device import (
    LOWEST,
    device_function,
    exchange,
    load_bfloats,
    load_floats,
    load_halves,
)
from pqkv.kernels.cuda.numbers import number_reader
from pqkv.kernels.cuda.paging import page_of_token

_LOADS = {"float32": load_floats, "float16": load_halves, "bfloat16": load_bfloats}


class Lane(NamedTuple):
    """A thread's place: its team, its lane there, and the mask of the team's lanes."""

    team: Any
    lane: Any
    mask: Any


def load_query(variant):
    """load(query, scale, first_head, lane, q): the elements of each head that a lane holds, times scale,
    [head][element].
    """
    D, GROUP, LOADS, VECTOR, LANES, OWN = (
        variant.head_dim, variant.group, variant.loads, variant.vector, variant.lanes, variant.own,
    )  # fmt: skip

    read = number_reader(variant.query)

    @device_function
    def load(query, scale, first_head, lane, q):
        for g in range(GROUP):
            for i in range(LOADS):
                for e in range(VECTOR):
                    at = (first_head + g) * D + (i * LANES + lane) * VECTOR + e
                    q[g * OWN + i * VECTOR + e] = read(query, at) * scale

    return load


def find_rows(variant):
    """find(paging, token, end, place): the first words of `tokens` rows from `token` on. Where nothing is paged all
    tokens of a sequence are one page, whose number is the `row` of the paging.
    """
    TOKENS, WORDS = variant.tokens, 4 * variant.head_dim // variant.vector

    @device_function
    def find_paged(paging, token, end, place):
        for u in range(TOKENS):
            # past the end the last token is read again and counted with weight 0
            number, inside = page_of_token(paging, min(token + u, end - 1))
            page = int64(paging.table[uint64(paging.row + number)])
            place[u] = ((page * paging.kv_heads + paging.kv) * paging.size + inside) * WORDS

    @device_function
    def find_in_row(paging, token, end, place):
        row = (int64(paging.row) * paging.kv_heads + paging.kv) * paging.size
        for u in range(TOKENS):
            place[u] = (row + min(token + u, end - 1)) * WORDS

    return find_paged if variant.paged else find_in_row


def load_row(variant):
    """load(rows, place, lane, row): the elements of a row that a lane holds, in float32."""
    LOADS, VECTOR, LANES, load_four = variant.loads, variant.vector, variant.lanes, _LOADS[variant.dtype]

    @device_function
    def load(rows, place, lane, row):
        for i in range(LOADS):
            load_four(rows, place + (i * LANES + lane) * 4, row, i * VECTOR)

    return load


def score_rows(variant):
    """score_rows(keys, place, lane, token, end, q, score): scores of a team's tokens, [token][head], in all lanes."""
    GROUP, TOKENS, OWN, HALVINGS = variant.group, variant.tokens, variant.own, variant.lanes.bit_length() - 1
    load = load_row(variant)

    @device_function
    def score_rows(keys, place, lane, token, end, q, score):
        row = cuda.local.array(OWN, float32)
        for u in range(TOKENS):
            load(keys, place[u], lane.lane, row)
            for g in range(GROUP):
                total = float32(0.0)
                for e in range(OWN):
                    total += q[g * OWN + e] * row[e]
                for halving in range(HALVINGS):
                    total += exchange(lane.mask, total, int32(1 << halving))
                score[u * GROUP + g] = total if token + u < end else float32(LOWEST)

    return score_rows


def add_values(variant):
    """add_values(values, place, lane, score, acc): rows of values by their weights to acc, [head][element]."""
    GROUP, TOKENS, OWN = variant.group, variant.tokens, variant.own
    load = load_row(variant)

    @device_function
    def add_values(values, place, lane, score, acc):
        row = cuda.local.array(OWN, float32)
        for u in range(TOKENS):
            load(values, place[u], lane.lane, row)
            for g in range(GROUP):
                for e in range(OWN):
                    acc[g * OWN + e] += score[u * GROUP + g] * row[e]

    return add_values
