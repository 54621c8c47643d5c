"""One decoding step in one compiled call: from addresses of tensors to the arrays that kernels read, units of work of
pages and of exact parts on threads, and the merge of what belongs to a KV head by whoever ends its last unit.

A model that runs between two steps leaves nothing of them in a cache, so a step costs what it touches: the objects of
one array, and torch's way to it, as much as a page of codes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import carray, types
from numba.extending import register_jitable

from pqkv.compiled import compiled
from pqkv.kernels.cpu.exact_form import BFLOAT16, FLOAT32
from pqkv.kernels.cpu.exact_vectors import nearest_half
from pqkv.parallel import WORTH
from pqkv.thread_code import call_bound, is_last, pointer_to

DONE, NO_MEMORY, NO_ROOM = range(3)  # how a step ends; without room for what lengths say nothing was read
SINKS, PAGES, RESIDUAL = range(3)


class Now(NamedTuple):
    """What a step brings, and where its results go. Partial results are of the stretches of pages, then of sinks and
    residual together: S + 1 of each KV head.
    """

    taken: np.ndarray  # (2,) int64: units of work that were begun, of pages and of exact parts
    left: np.ndarray  # (B * Hkv,) int64: units that a KV head's merge still waits for
    query: np.ndarray  # (B, Hq, D) float32, scaled to base 2
    coded_query: np.ndarray  # (B, Hq, D) float32, scaled so: what codes meet
    phasors: np.ndarray  # (B, Hq, P, 2) float32
    phasor_scale: float
    table: np.ndarray  # (B, max_pages) int32
    lengths: np.ndarray  # (3, B) int64, of sinks, pages, residual
    starts: np.ndarray  # (3, B) int64: the first token of each that is seen
    stretch: int  # tokens of a unit of work in pages
    out: np.ndarray  # (B, Hkv, S + 1, G, D) float32
    top: np.ndarray  # (B, Hkv, S + 1, G) float32, the largest score; -inf of what is empty
    total: np.ndarray  # (B, Hkv, S + 1, G) float32, the mass; 0 of what is empty
    result: np.ndarray  # (B, Hq, D) float32
    halves: np.ndarray  # (B, Hq, D) uint16, bfloat16 to which results are rounded, or none
    lse: np.ndarray  # (B, Hq) float64, in base e

    @property
    def stretches(self) -> int:
        """Units of work of a sequence and KV head in pages."""
        return int(self.top.shape[2]) - 1


def _array(kind: types.Type, dimensions: int) -> types.Array:
    return types.Array(kind, dimensions, "C")


NOW = types.NamedTuple(
    (
        _array(types.int64, 1), _array(types.int64, 1), _array(types.float32, 3), _array(types.float32, 3),
        _array(types.float32, 4), types.float64, _array(types.int32, 2), _array(types.int64, 2),
        _array(types.int64, 2), types.int64, _array(types.float32, 5), _array(types.float32, 4),
        _array(types.float32, 4), _array(types.float32, 3), _array(types.uint16, 3),
        _array(types.float64, 2),
    ),
    Now,
)  # fmt: skip


@register_jitable
def _begun(
    threads, most, least, stretches, window, scale,
    batch, kv_heads, group, head_dim, page_size, span, sink_room, residual_room, shares, token_work, exact_work,
    kind, query, coded_query, phasors, pairs, table, width, sink_len, context_len, residual_len, result, lse,
):  # fmt: skip
    heads = kv_heads * group
    lengths, starts = np.zeros((3, batch), np.int64), np.zeros((3, batch), np.int64)
    fits = _read_lengths(lengths[SINKS], sink_len, sink_room)
    fits = _read_lengths(lengths[PAGES], context_len, width * page_size) and fits
    fits = _read_lengths(lengths[RESIDUAL], residual_len, residual_room) and fits
    if not fits:
        batch = 0  # then nothing is made for lengths that are wrong
    longest = np.int64(0)
    for b in range(batch):
        longest = max(longest, lengths[PAGES, b])
    if window > 0:
        _see_window(starts, lengths, window)
    if stretches < 0:
        stretches = _stretches(longest, batch * kv_heads, threads, most, least)
    stretch = max(1, -(-longest // (max(stretches, 1) * span))) * span
    units = batch * kv_heads * (stretches * shares + 1)
    work = batch * longest * kv_heads * shares * token_work + exact_work
    shape = batch, heads, head_dim
    scaled = _scaled(query, kind, scale, shape)
    of_codes = _scaled(coded_query, FLOAT32, scale, shape) if coded_query else scaled
    rounded = kind == BFLOAT16
    now = Now(
        np.zeros(2, np.int64),
        np.full(batch * kv_heads, stretches * shares + 1, np.int64),
        scaled,
        of_codes,
        carray(pointer_to(phasors, np.float32), (batch, heads, pairs, 2)),
        scale,
        carray(pointer_to(table, np.int32), (batch, width)),
        lengths,
        starts,
        stretch,
        np.empty((batch, kv_heads, stretches + 1, group, head_dim), np.float32),
        np.empty((batch, kv_heads, stretches + 1, group), np.float32),
        np.empty((batch, kv_heads, stretches + 1, group), np.float32),
        np.empty(shape, np.float32) if rounded else carray(pointer_to(result, np.float32), shape),
        carray(pointer_to(result, np.uint16), shape if rounded else (0, heads, head_dim)),
        carray(pointer_to(lse, np.float64), (batch, heads)),
    )
    return now, fits, units > 1 and work >= WORTH


@compiled(nogil=True)
def begin_step(*given):
    """`Now`, whether there is room for what lengths say, and whether more than one thread pays, of

    torch's number of threads; the most and the least tokens of a stretch, or how many stretches a sequence is to have
    (-1 to choose); window, 0 for none; scale, to base 2;
    batch, kv_heads, group, head_dim, page_size; `span`, what stretches are multiples of; the capacity of sinks and of
    the residual; `shares`, units of work of a stretch; microseconds on a thread of a token in pages and of the exact
    parts, estimates;
    the kind of the query's numbers and of the result's, `FLOAT32` or `BFLOAT16`;
    addresses, 0 of what is not there: query, coded query, phasors, of which there are `pairs`, page table and its
    width, lengths of sinks, pages and residual, result and lse.
    """
    return _begun(*given)


@compiled(nogil=True)
def take_step(launch, pages_call, pages_room, exact_call, exact_room, threads, *given):
    """A whole step on what `begin_step` takes; `launch` is the address of `GOMP_parallel`, 0 for this thread alone, the
    next four `thread_code.bind`'s of the kernels of pages (0 for none) and of exact parts.
    """
    now, fits, pays = _begun(threads, *given)
    if not fits:
        return NO_ROOM
    failed = call_bound(
        launch, threads if launch and pays else 1, (pages_call, pages_room, exact_call, exact_room), NOW, now
    )
    return NO_MEMORY if failed else DONE


@compiled(nogil=True)
def work(launch, threads, pages_call, pages_room, exact_call, exact_room, now):
    """The units of a step that was begun; whether memory was missing."""
    return call_bound(launch, threads, (pages_call, pages_room, exact_call, exact_room), NOW, now)


@register_jitable
def _read_lengths(lengths, address, room):
    """Whether lengths (B,) int32 at an address, none of them below 0 or above `room`, were read."""
    if not address:
        return True
    given = carray(pointer_to(address, np.int32), lengths.shape)
    fits = True
    for b in range(len(lengths)):
        lengths[b] = given[b]
        fits = fits and 0 <= given[b] <= room
    return fits


@register_jitable
def _see_window(starts, lengths, window):
    """The first token of each part that the newest query, which stands at total - 1, sees."""
    for b in range(lengths.shape[1]):
        hidden = max(lengths[SINKS, b] + lengths[PAGES, b] + lengths[RESIDUAL, b] - window, 0)
        for part in range(3):
            starts[part, b] = min(hidden, lengths[part, b])
            hidden -= starts[part, b]


@register_jitable
def _stretches(longest, rows, threads, most, least):
    """Units of work the longest sequence is cut into: small enough for the cache, enough of them for the threads.

    A page is never cut, so a contiguous cache, one page a sequence, is one unit a sequence and head.
    """
    if longest == 0:
        return 0
    wanted = max(-(-longest // most), -(-2 * threads // rows))
    return max(1, min(wanted, longest // least))


@register_jitable
def _scaled(address, kind, scale, shape):
    """Numbers at an address as float32, times a scale."""
    made = np.empty(shape, np.float32)
    flat, factor = made.reshape(-1), np.float32(scale)
    if kind == BFLOAT16:
        halves, bits = carray(pointer_to(address, np.uint16), flat.shape), flat.view(np.uint32)
        for i in range(len(flat)):
            bits[i] = np.uint32(halves[i]) << np.uint32(16)
    else:
        given = carray(pointer_to(address, np.float32), flat.shape)
        for i in range(len(flat)):
            flat[i] = given[i]
    for i in range(len(flat)):
        flat[i] *= factor
    return made


@register_jitable
def end_unit(now, b, h):
    """To be called when a unit's partial results are written: the last one of a KV head merges them."""
    if is_last(now.left, b * now.top.shape[1] + h):
        merge_row(now, b, h)


@compiled(error_model="numpy")
def merge_row(now, b, h):
    """Stretches and exact parts of a KV head's queries together."""
    parts, G = now.top.shape[2:]
    out, top, total = now.out[b, h], now.top[b, h], now.total[b, h]
    for g in range(G):
        best = top[parts - 1, g]
        for s in range(parts - 1):
            best = max(best, top[s, g])
        mixed, mass = now.result[b, h * G + g], np.float32(0.0)
        mixed[:] = 0.0
        for s in range(parts):
            mass += _join(mixed, out[s, g], top[s, g], total[s, g], best)
        if mass == 0.0:
            now.lse[b, h * G + g] = -np.inf
        else:
            for d in range(len(mixed)):
                mixed[d] /= mass
            now.lse[b, h * G + g] = (np.float64(best) + np.log2(np.float64(mass))) * np.log(2.0)
        if len(now.halves):
            bits, halves = mixed.view(np.uint32), now.halves[b, h * G + g]
            for d in range(len(bits)):
                halves[d] = nearest_half(bits[d])


@register_jitable
def _join(mixed, part, top, total, best):
    """Add a part to `mixed`, (D,), relative to the score `best`; returns its mass."""
    if total == 0.0:  # NaN is not 0 and goes on
        return np.float32(0.0)
    weight = np.exp2(top - best)
    for d in range(len(mixed)):
        mixed[d] += weight * part[d]
    return weight * total
