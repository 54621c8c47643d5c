"""One query per sequence on the CPU: from tensors to the arrays the kernels read, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pqkv.cpu_path import PATHS, cpu_path
from pqkv.kernels.cpu.byte_lookups.attend import VALUES, attend_bytes
from pqkv.kernels.cpu.byte_lookups.intrinsics import EMITTERS
from pqkv.kernels.cpu.byte_lookups.prepare import byte_side, serves_bytes
from pqkv.kernels.cpu.coded import attend_coded
from pqkv.kernels.cpu.exact import attend_exact_pages, merge
from pqkv.kernels.cpu.exact_form import FORMS, host_form, orders
from pqkv.kernels.cpu.exact_vectors import form_tags
from pqkv.kernels.cpu.paging import Side
from pqkv.kernels.cpu.sides import Array, Way, channels_of, coded_side, exact_parts, exact_sides
from pqkv.kernels.turns import BLOCK, POLYNOMIALS, turns
from pqkv.kernels.types import ExactTokens, PagedTokens
from pqkv.parallel import run_units
from pqkv.vector_code import tag

_REGISTER = 8  # floats of one vector register
_MOST_KEY_LANES, _MOST_VALUE_LANES = _REGISTER, 2 * _REGISTER  # with more, tables and bins cost less than centroids
_STRETCH = 8192  # tokens of one unit of work: their scores stay in the second-level cache, tables come often from it
_SPAN = 64  # tokens that stretches of exact pages are multiples of
_SHORTEST = 256  # a unit this short pays for being handed to a thread
# rough costs of a token on a thread: of a code, of a number of an exact vector in a page, of a product in exact parts
_US_CODE, _US_EXACT_NUMBER, _US_PRODUCT = 4e-4, 1.5e-4, 4e-5

Turning = tuple[Array, float, Array, Array, Array]


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step as the arrays that kernels read and write. `partial` are out (B, Hkv, stretches, G, D), top and
    total (B, Hkv, stretches, G); `exact` keys and values of sinks and residual, in numbers of `kind`; lengths and
    starts of sinks, pages, residual; `ways` of keys and of values; `rounded` says that centroids of floats may become
    bytes.
    """

    query: Array  # (B, Hq, D) float32, scaled to base 2
    coded_query: Array  # (B, Hq, D), what codes meet
    turning: Turning  # phasors (B, Hq, P, 2), what scales them, and the tables of `pqkv.kernels.turns`
    pages: PagedTokens | None
    longest: int  # tokens in pages of a sequence
    lengths: list[Array]
    starts: list[Array]
    kv_heads: int
    partial: tuple[Array, Array, Array]
    kind: int
    exact: list[tuple[Array, Array]]
    ways: tuple[Way, Way]
    rounded: bool = False

    @property
    def group(self) -> int:
        """Query heads of a KV head."""
        return int(self.query.shape[1] // self.kv_heads)

    @property
    def stretches(self) -> int:
        """Units of work of a sequence and KV head."""
        return int(self.partial[0].shape[2])

    @property
    def units(self) -> int:
        """Units of work of all sequences and KV heads."""
        return len(self.query) * self.kv_heads * self.stretches

    @property
    def by_bytes(self) -> bool:
        """Whether codes are looked up in byte tables."""
        if self.pages is None or self.ways != ("auto", "auto"):
            return False
        return serves_bytes(self.pages, self.group, cpu_path(), rounded=self.rounded)

    def page_work(self) -> float:
        """About how many microseconds `attend_pages` takes on one thread, where all sequences are as long."""
        assert self.pages is not None
        vectors = len(self.query) * self.longest * self.kv_heads
        books = (self.pages.keys.centroids, self.pages.values.centroids)
        return vectors * sum(
            self.query.shape[2] * _US_EXACT_NUMBER if book is None else book.shape[1] * _US_CODE for book in books
        )

    def exact_work(self) -> float:
        """About how many microseconds `merge` takes on one thread, where sinks and residual are full."""
        numbers = sum(part.size for parts in self.exact for part in parts)
        return numbers * self.group * _US_PRODUCT

    def paging(self) -> tuple[Array, Array, Array, int, int, int]:
        """Lengths, starts, table, KV heads, page size and pages of a stretch, as the kernels take them."""
        pages = self.pages
        assert pages is not None
        each = max(1, -(-self.longest // (self.stretches * pages.page_size)))
        return self.lengths[1], self.starts[1], pages.page_table.numpy(), self.kv_heads, pages.page_size, each

    def exact_paging(self) -> tuple[Array | int, ...]:
        """Table, lengths, starts, KV heads, page size and tokens of a stretch: exact pages are cut where need be."""
        lengths, starts, table, kv_heads, page_size, _ = self.paging()
        return table, lengths, starts, kv_heads, page_size, -(-self.longest // (self.stretches * _SPAN)) * _SPAN

    def exact_tags(self, kind: int) -> tuple[Array | tuple[Any, ...], ...]:
        """What tells exact kernels where the elements of a row lie, and what numbers and processor they are for."""
        form, D = host_form(), self.query.shape[2]
        return *orders(D, kind, FORMS[form]), *self.tags(), *form_tags(D, kind, form)

    def sides(self) -> tuple[Side, Side]:
        """Coded keys and values."""
        assert self.pages is not None
        P, G = self.pages.page_size, self.group
        return (
            coded_side(self.pages.keys, P, G, self.ways[0], _MOST_KEY_LANES),
            coded_side(self.pages.values, P, G, self.ways[1], _MOST_VALUE_LANES),
        )

    def gains(self) -> tuple[Array, Array]:
        """Gains of values, flat, and what their bytes stand for, (Hkv, 256)."""
        assert self.pages is not None
        side = self.pages.values
        if side.gains is None or side.gain_values is None:
            return np.empty(0, np.uint8), np.empty((1, 256), np.float32)
        return side.gains.reshape(-1).numpy(), side.gain_values.numpy()

    def tags(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Query heads of a group, and tokens that fill a vector with them."""
        unit = next(u for u in (8, 4, 2, 1) if u * self.group <= _REGISTER or u == 1)
        return tag(self.group), tag(unit)

    def attend_pages(self) -> None:
        """Partial results of all stretches."""
        if self.pages is None or not self.stretches:
            return
        if self.pages.keys.centroids is None:
            kind, sides = exact_sides(self.pages)
            exact = self.query, *self.exact_paging(), *sides, *self.partial, *self.exact_tags(kind)
            run_units(attend_exact_pages, self.units, self.page_work(), *exact)
            return
        if self.by_bytes:
            self.attend_by_bytes()
            return
        lengths, starts, *paging = self.paging()
        keys, values = self.sides()
        coded = (
            self.coded_query,
            *self.turning,
            *self.gains(),
            lengths,
            starts,
            *paging,
            *keys,
            *values,
            *self.partial,
            *self.tags(),
        )
        run_units(attend_coded, self.units, self.page_work(), *coded)

    def attend_by_bytes(self, phases: int = VALUES) -> None:
        """`attend_pages` by look-ups in byte tables, up to a phase (`attend_bytes`)."""
        assert self.pages is not None
        sides = (
            byte_side(side, self.pages.page_size, channels_of(side), keys=side is self.pages.keys)
            for side in (self.pages.keys, self.pages.values)
        )
        keys, values = sides
        gained = tag(int(self.pages.values.gains is not None))
        path = cpu_path().name
        emitter = EMITTERS[path]
        tags = tag(PATHS.index(path)), tag(emitter.lanes), tag(emitter.scaled), tag(self.group), gained
        given = self.coded_query, *self.turning, *self.gains(), *self.paging(), *keys, *values, *self.partial, *tags
        run_units(attend_bytes, self.units, self.page_work(), *given, tag(phases))

    def without_pages(self) -> Step:
        """The same step with nothing but sinks and residual to merge."""
        out, top, total = self.partial
        return replace(self, partial=(out[:, :, :0], top[:, :, :0], total[:, :, :0]))

    def without_exact_parts(self) -> Step:
        """The same step with nothing but the stretches to merge."""
        none = np.zeros_like(self.lengths[0])
        return replace(self, lengths=[none, self.lengths[1], none], starts=[none, self.starts[1], none])

    def merge(self) -> tuple[Array, Array]:
        """Stretches, sinks and residual together: (B, Hq, D) float32, and lse (B, Hq) float64."""
        B, Hq, D = self.query.shape
        result, lse = np.empty((B, Hq, D), np.float32), np.empty((B, Hq), np.float64)
        sinks, residual = ((keys.reshape(-1), values.reshape(-1), keys.shape[2]) for keys, values in self.exact)
        run_units(
            merge, B * self.kv_heads, self.exact_work(), self.query, *self.partial, *sinks, self.lengths[0],
            self.starts[0], *residual, self.lengths[2], self.starts[2], result, lse, *self.exact_tags(self.kind),
        )  # fmt: skip
        return result, lse


def step_of(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
    ways: tuple[Way, Way] = ("auto", "auto"),
    stretches: int | None = None,
    rounded: bool = False,
) -> Step:
    """The arguments of `AttentionBackend` for Tq = 1 as arrays; `ways` force what codes of keys and values look up,
    `stretches` how many units of work the pages of a sequence are cut into, `rounded` takes centroids of floats as
    bytes where those are looked up.
    """
    B, _, Hq, D = query.shape
    Hkv = _kv_heads(pages, sinks, residual, Hq)
    scale *= math.log2(math.e)
    scaled = _scaled(query, scale)
    coded_query, turning = _as_codes_meet(scaled, pages, scale)
    lengths = [_lengths(part, B) for part in (sinks, pages, residual)]
    longest = 0 if pages is None else int(lengths[1].max(initial=0))
    if stretches is None or pages is None:
        stretches = _stretches(longest, B * Hkv)
    G = Hq // Hkv
    out = np.empty((B, Hkv, stretches, G, D), np.float32)
    top, total = (np.empty((B, Hkv, stretches, G), np.float32) for _ in range(2))
    kind, exact = exact_parts(sinks, residual, Hkv, D, torch.float32 if pages is None else pages.keys.pages.dtype)
    starts, partial = _starts(lengths, window), (out, top, total)
    return Step(
        scaled, coded_query, turning, pages, longest, lengths, starts, Hkv, partial, kind, exact, ways, rounded
    )  # fmt: skip


def decode(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
    ways: tuple[Way, Way] = ("auto", "auto"),
    stretches: int | None = None,
    rounded: bool = False,
) -> tuple[Tensor, Tensor]:
    """`AttentionBackend` for Tq = 1; returns out in the query's dtype and lse in float64. See `step_of`."""
    step = step_of(
        query, pages, sinks, residual, scale=scale, window=window, ways=ways, stretches=stretches, rounded=rounded
    )
    step.attend_pages()
    result, lse = step.merge()
    return torch.from_numpy(result)[:, None].to(query.dtype), torch.from_numpy(lse)[:, None]


def _scaled(query: Tensor, scale: float) -> Array:
    """(B, 1, Hq, ...) -> (B, Hq, ...) float32."""
    scaled: Array = np.multiply(query.detach().float().numpy()[:, 0], np.float32(scale))
    return scaled


def _as_codes_meet(query: Array, pages: PagedTokens | None, scale: float) -> tuple[Array, Turning]:
    """What coded keys are scored with: the query, scaled, or one of their own with phasors and tables of turns."""
    coded = None if pages is None else pages.query
    if pages is None or coded is None or not coded.frequencies:
        tables = (np.empty(shape, np.float32) for shape in ((0, 0, 2), (0, BLOCK), (0, POLYNOMIALS)))
        middles, rows, slow = tables
        none = np.empty((*query.shape[:2], 0, 2), np.float32), 0.0, middles, rows, slow
        return query if coded is None else _scaled(coded.query, scale), none
    found = turns(coded.frequencies, pages.page_table.shape[1] * pages.page_size, coded.query.device)
    phasors: Array = np.ascontiguousarray(coded.phasors[:, 0].detach().float().numpy())
    if not found.in_order:
        phasors = np.take(phasors, found.order, 2)  # in a row: of strided ones kernels would be compiled once more
    return _scaled(coded.query, scale), (phasors, scale, found.middles.numpy(), found.rows.numpy(), found.slow.numpy())


def _kv_heads(pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None, Hq: int) -> int:
    for part in (sinks, residual):
        if part is not None:
            return part.keys.shape[1]
    return Hq if pages is None else pages.keys.pages.shape[1]


def _lengths(part: PagedTokens | ExactTokens | None, batch: int) -> Array:
    if part is None:
        return np.zeros(batch, np.int64)
    lengths = part.context_len if isinstance(part, PagedTokens) else part.length
    return lengths.numpy().astype(np.int64)


def _starts(lengths: list[Array], window: int | None) -> list[Array]:
    """First token of each part that the newest query, which stands at total - 1, sees."""
    if window is None:
        return [np.zeros_like(length) for length in lengths]
    total = lengths[0] + lengths[1] + lengths[2]
    first = np.maximum(total - window, 0)
    before = np.zeros_like(total)
    starts = []
    for length in lengths:
        starts.append(np.clip(first - before, 0, length))
        before = before + length
    return starts


def _stretches(longest: int, rows: int) -> int:
    """Units of work the longest sequence is cut into: small enough for the cache, enough of them for the threads.

    A page is never cut, so a contiguous cache, one page a sequence, is one unit a sequence and head.
    """
    if not longest:
        return 0
    wanted = max(-(-longest // _STRETCH), -(-2 * torch.get_num_threads() // rows))
    return max(1, min(wanted, longest // _SHORTEST))
