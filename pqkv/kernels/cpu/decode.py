"""One query per sequence on the CPU: from tensors to the arrays the kernels read, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pqkv.kernels.checks import Lengths
from pqkv.kernels.cpu.byte_lookups.attend import VALUES, attend_bytes
from pqkv.kernels.cpu.byte_lookups.prepare import heads_at_once
from pqkv.kernels.cpu.coded import attend_coded
from pqkv.kernels.cpu.exact import attend_exact_pages, merge
from pqkv.kernels.cpu.held import NO_TURNS, Held, hold, recall
from pqkv.kernels.cpu.sides import Array, Way
from pqkv.kernels.types import ExactTokens, PagedTokens
from pqkv.parallel import run_units
from pqkv.vector_code import tag

_STRETCH = 8192  # tokens of one unit of work: their scores stay in the second-level cache, tables come often from it
_SPAN = 64  # tokens that stretches of exact pages are multiples of
_SHORTEST = 256  # a unit this short pays for being handed to a thread

Counts = tuple[Lengths, Lengths, Lengths]
Turning = tuple[Array, float, Array, Array, Array]


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step as the arrays that kernels read and write. `partial` are out (B, Hkv, stretches, G, D), top and
    total (B, Hkv, stretches, G); lengths and starts of sinks, pages, residual.
    """

    held: Held
    query: Array  # (B, Hq, D) float32, scaled to base 2
    coded_query: Array  # (B, Hq, D), what codes meet
    turning: Turning  # phasors (B, Hq, P, 2), what scales them, and the tables of `pqkv.kernels.turns`
    table: Array | None  # (B, max_pages), page ids
    longest: int  # tokens in pages of a sequence
    lengths: list[Array]
    starts: list[Array]
    partial: tuple[Array, Array, Array]

    @property
    def stretches(self) -> int:
        """Units of work of a sequence and KV head."""
        return int(self.partial[0].shape[2])

    @property
    def units(self) -> int:
        """Units of work of all sequences and KV heads."""
        return len(self.query) * self.held.kv_heads * self.stretches

    def page_work(self) -> float:
        """About how many microseconds `attend_pages` takes on one thread, where all sequences are as long."""
        return len(self.query) * self.longest * self.held.kv_heads * self.held.token_work

    def paging(self) -> tuple[Array, Array, Array, int, int, int]:
        """Lengths, starts, table, KV heads, page size and pages of a stretch, as the kernels take them."""
        pages, table = self.held.pages, self.table
        assert pages is not None
        assert table is not None
        each = max(1, -(-self.longest // (self.stretches * pages.page_size)))
        return self.lengths[1], self.starts[1], table, self.held.kv_heads, pages.page_size, each

    def exact_paging(self) -> tuple[Array | int, ...]:
        """Table, lengths, starts, KV heads, page size and tokens of a stretch: exact pages are cut where need be."""
        lengths, starts, table, kv_heads, page_size, _ = self.paging()
        return table, lengths, starts, kv_heads, page_size, -(-self.longest // (self.stretches * _SPAN)) * _SPAN

    def attend_pages(self) -> None:
        """Partial results of all stretches."""
        held = self.held
        if held.pages is None or not self.stretches:
            return
        if held.pages.keys.centroids is None:
            keys, values, tags = held.exact_pages
            exact = self.query, *self.exact_paging(), keys, values, *self.partial, *tags
            run_units(attend_exact_pages, self.units, self.page_work(), *exact)
            return
        if held.by_bytes:
            self.attend_by_bytes()
            return
        keys, values = held.coded_sides
        coded = self.coded_query, *self.turning, *held.gains, *self.paging(), *keys, *values, *self.partial, *held.tags
        run_units(attend_coded, self.units, self.page_work(), *coded)

    def attend_by_bytes(self, phases: int = VALUES) -> None:
        """`attend_pages` by look-ups in byte tables, up to a phase (`attend_bytes`)."""
        held = self.held
        keys, values = held.byte_sides
        given = (
            self.coded_query, *self.turning, *held.gains, *self.paging(), *keys, *values, *self.partial,
            *held.byte_tags,
        )  # fmt: skip
        parts = held.group // heads_at_once(held.group)
        run_units(attend_bytes, parts * self.units, parts * self.page_work(), *given, tag(phases))

    def without_pages(self) -> Step:
        """The same step with nothing but sinks and residual to merge."""
        out, top, total = self.partial
        return replace(self, partial=(out[:, :, :0], top[:, :, :0], total[:, :, :0]))

    def without_exact_parts(self) -> Step:
        """The same step with nothing but the stretches to merge."""
        none = self.held.none
        return replace(self, lengths=[none, self.lengths[1], none], starts=[none, self.starts[1], none])

    def merge(self) -> tuple[Array, Array]:
        """Stretches, sinks and residual together: (B, Hq, D) float32, and lse (B, Hq) float64."""
        held, (B, Hq, D) = self.held, self.query.shape
        result, lse = np.empty((B, Hq, D), np.float32), np.empty((B, Hq), np.float64)
        run_units(
            merge, B * held.kv_heads, held.exact_work, self.query, *self.partial, *held.sinks, self.lengths[0],
            self.starts[0], *held.residual, self.lengths[2], self.starts[2], result, lse,
            *held.exact_tags,
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
    planes: int = 2,
    held: Held | None = None,
    lengths: Counts | None = None,
) -> Step:
    """The arguments of `AttentionBackend` for Tq = 1 as arrays; `ways` force what codes of keys and values look up,
    `stretches` how many units of work the pages of a sequence are cut into, `rounded` takes centroids of floats as
    bytes where those are looked up, and `planes` is of how many bytes queries and weights are there, 1 or 2. `held` is
    what was made of the same tensors before, `lengths` what `check_lengths` returned; nothing is checked here.
    """
    if held is None:
        given = query, pages, sinks, residual, ways, rounded, planes
        held = recall(*given) or hold(*given)
    B, D = query.shape[0], query.shape[3]
    Hkv, G = held.kv_heads, held.group
    scale *= math.log2(math.e)
    scaled = _scaled(query, scale)
    coded_query, turning = _as_codes_meet(held, scaled, pages, scale)
    counts = _counts(pages, sinks, residual) if lengths is None else lengths
    wholes = [held.none if count is None else np.array(count, np.int64) for count in counts]
    longest = max(counts[1] or (), default=0)
    if stretches is None or pages is None:
        stretches = _stretches(longest, B * Hkv)
    out = np.empty((B, Hkv, stretches, G, D), np.float32)
    top, total = (np.empty((B, Hkv, stretches, G), np.float32) for _ in range(2))
    starts = [held.none] * 3 if window is None else _starts(wholes, window)
    table = None if pages is None else held.table(pages)
    return Step(held, scaled, coded_query, turning, table, longest, wholes, starts, (out, top, total))


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
    planes: int = 2,
    held: Held | None = None,
    lengths: Counts | None = None,
) -> tuple[Tensor, Tensor]:
    """`AttentionBackend` for Tq = 1; returns out in the query's dtype and lse in float64. See `step_of`."""
    step = step_of(
        query, pages, sinks, residual, scale=scale, window=window, ways=ways, stretches=stretches, rounded=rounded,
        planes=planes, held=held, lengths=lengths,
    )  # fmt: skip
    step.attend_pages()
    result, lse = step.merge()
    rows = query.shape[:3]  # of arrays: to index a tensor takes longer
    out = torch.from_numpy(result.reshape(query.shape))
    return out if query.dtype == torch.float32 else out.to(query.dtype), torch.from_numpy(lse.reshape(rows))


def _scaled(query: Tensor, scale: float) -> Array:
    """(B, 1, Hq, ...) -> (B, Hq, ...) float32."""
    B, _, *rest = query.shape
    plain = query.dtype == torch.float32 and not query.requires_grad  # then two calls of torch less
    scaled: Array = np.multiply((query if plain else query.detach().float()).numpy(), np.float32(scale))
    return scaled.reshape(B, *rest)


def _as_codes_meet(held: Held, query: Array, pages: PagedTokens | None, scale: float) -> tuple[Array, Turning]:
    """What coded keys are scored with: the query, scaled, or one of their own with phasors and tables of turns."""
    coded = None if pages is None else pages.query
    if pages is None or coded is None or not coded.frequencies:
        none = np.empty((*query.shape[:2], 0, 2), np.float32), 0.0, *NO_TURNS
        return query if coded is None else _scaled(coded.query, scale), none
    order, tables = held.turning(coded, pages)
    B, _, Hq, P, _ = coded.phasors.shape
    phasors: Array = np.ascontiguousarray(coded.phasors.detach().float().numpy()).reshape(B, Hq, P, 2)
    if order is not None:
        phasors = np.take(phasors, order, 2)  # in a row: of strided ones kernels would be compiled once more
    return _scaled(coded.query, scale), (phasors, scale, *tables)


def _counts(pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None) -> Counts:
    """The lengths of sinks, pages and residual, as they are."""
    first, last = (None if part is None else part.length.tolist() for part in (sinks, residual))
    return first, None if pages is None else pages.context_len.tolist(), last


def _starts(lengths: list[Array], window: int) -> list[Array]:
    """First token of each part that the newest query, which stands at total - 1, sees."""
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
