"""Keys and values as the kernels take them: arrays, and tags of what they are compiled for. From step to step a cache's
tensors lie where they lay, so all this is made once, and again only where one of them is another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pqkv.cpu_path import cpu_path
from pqkv.kernels.cpu.byte_lookups.attend import VALUES, ByteSide, bind_bytes
from pqkv.kernels.cpu.byte_lookups.intrinsics import emitter_of, path_tag
from pqkv.kernels.cpu.byte_lookups.prepare import byte_side, heads_at_once, serves_bytes
from pqkv.kernels.cpu.coded import bind_coded
from pqkv.kernels.cpu.exact import bind_exact_pages, bind_exact_parts
from pqkv.kernels.cpu.exact_form import FORMS, host_form, orders
from pqkv.kernels.cpu.exact_vectors import form_tags
from pqkv.kernels.cpu.paging import Side
from pqkv.kernels.cpu.sides import Array, Way, channels_of, coded_side, exact_parts, exact_sides
from pqkv.kernels.cpu.step import NOW
from pqkv.kernels.turns import BLOCK, POLYNOMIALS, turns
from pqkv.kernels.types import CodedQuery, ExactTokens, PagedTokens
from pqkv.vector_code import tag

_SPAN = 64  # tokens that stretches of exact pages are multiples of
_REGISTER = 8  # floats of one vector register
_MOST_KEY_LANES, _MOST_VALUE_LANES = _REGISTER, 2 * _REGISTER  # with more, tables and bins cost less than centroids
# rough costs on a thread, in microseconds: of a code, of a number of an exact vector in a page, of a product in exact
# parts
_US_CODE, _US_EXACT_NUMBER, _US_PRODUCT = 4e-4, 1.5e-4, 4e-5
_NAME = "pqkv.kernels.cpu"

Tables = tuple[Array, Array, Array]


class Bound(NamedTuple):
    """A kernel with its arguments that stay (`pqkv.thread_code.bind`): two addresses, and what has to live with them,
    the room at the second and the arrays whose addresses it holds.
    """

    call: int
    place: int
    kept: tuple[object, ...] = ()


NOTHING = Bound(0, 0)


def bound(bind: Callable[..., tuple[int, Array]], *arguments: object) -> Bound:
    """A kernel bound by its `bind_...` to arguments, which live as long as what is returned."""
    call, room = bind(NOW, *arguments)
    return Bound(call, room.ctypes.data, (room, *arguments))


class Held:
    """Of one layer: what depends on where keys and values lie and not on queries or lengths. Where tokens are held by a
    cache (`PagedTokens.kept`), `recall` finds it again.
    """

    def __init__(
        self,
        query: Tensor,
        pages: PagedTokens | None,
        sinks: ExactTokens | None,
        residual: ExactTokens | None,
        ways: tuple[Way, Way],
        rounded: bool,
        planes: int,
    ) -> None:
        """`ways` of keys and of values, `rounded` and `planes` as `decode.How` has them."""
        B, _, Hq, D = query.shape
        self.pages = None if pages is None else replace(pages, query=None)
        self.ways, self.rounded, self.planes, self.head_dim = ways, rounded, planes, D
        self.path, self.form = cpu_path(), host_form()
        self.kv_heads = _kv_heads(pages, sinks, residual, Hq)
        self.group = Hq // self.kv_heads  # query heads of a KV head
        of_pages = torch.float32 if pages is None else pages.keys.pages.dtype
        self.kind, exact = exact_parts(sinks, residual, self.kv_heads, D, of_pages)
        (sink_keys, sink_values), (keys, values) = exact
        self.sinks = sink_keys.reshape(-1), sink_values.reshape(-1), sink_keys.shape[2]
        self.residual = keys.reshape(-1), values.reshape(-1), keys.shape[2]
        self.exact_work = sum(part.size for parts in exact for part in parts) * self.group * _US_PRODUCT
        self.tags = tag(self.group), tag(self._unit)
        self.exact_call = bound(
            bind_exact_parts, self.kv_heads, *self.sinks, *self.residual, *self.exact_tags_of(self.kind)
        )
        page_size = 1 if pages is None else pages.page_size
        exact_pages = pages is not None and pages.keys.centroids is None
        self.batch, self.lse = (B,), torch.empty((B, 1, Hq), dtype=torch.float64, device="cpu")
        self.numbers = (
            B, self.kv_heads, self.group, D, page_size, _SPAN if exact_pages else page_size, self.sinks[2],
            self.residual[2], self.group // heads_at_once(self.group) if self.by_bytes else 1, self.token_work,
            self.exact_work,
        )  # fmt: skip
        self._page_calls: dict[tuple[int, int], tuple[Tables, Bound]] = {}
        self._turns: tuple[tuple[float, ...], int, tuple[int, ...] | None, Tables] | None = None

    @property
    def _unit(self) -> int:
        """Tokens that fill a vector with the heads of a group."""
        return next(u for u in (8, 4, 2, 1) if u * self.group <= _REGISTER or u == 1)

    def exact_tags_of(self, kind: int) -> tuple[Array | tuple[Any, ...], ...]:
        """What tells exact kernels where the elements of a row lie, and what numbers and processor they are for."""
        where = orders(self.head_dim, kind, FORMS[self.form])
        return *where, *self.tags, *form_tags(self.head_dim, kind, self.form)

    @cached_property
    def by_bytes(self) -> bool:
        """Whether codes are looked up in byte tables."""
        if self.pages is None or self.ways != ("auto", "auto"):
            return False
        return serves_bytes(self.pages, self.group, self.path, rounded=self.rounded)

    @cached_property
    def token_work(self) -> float:
        """About how many microseconds a token of a KV head in pages takes on one thread."""
        if self.pages is None:
            return 0.0
        books = (self.pages.keys.centroids, self.pages.values.centroids)
        return sum(self.head_dim * _US_EXACT_NUMBER if book is None else book.shape[1] * _US_CODE for book in books)

    @cached_property
    def coded_sides(self) -> tuple[Side, Side]:
        """Coded keys and values that are looked up as floats."""
        assert self.pages is not None
        P, G = self.pages.page_size, self.group
        return (
            coded_side(self.pages.keys, P, G, self.ways[0], _MOST_KEY_LANES),
            coded_side(self.pages.values, P, G, self.ways[1], _MOST_VALUE_LANES),
        )

    @cached_property
    def byte_sides(self) -> tuple[ByteSide, ByteSide]:
        """Coded keys and values that are looked up in byte tables."""
        assert self.pages is not None
        keys, values = (
            byte_side(side, self.pages.page_size, channels_of(side), keys=side is self.pages.keys)
            for side in (self.pages.keys, self.pages.values)
        )
        return keys, values

    @cached_property
    def byte_tags(self) -> tuple[int | tuple[int, ...], ...]:
        """The largest integer of a query, and what look-ups in byte tables are compiled for."""
        assert self.pages is not None
        name, gained = self.path.name, tag(int(self.pages.values.gains is not None))
        emitter = emitter_of(name, self.planes)
        kinds = path_tag(name, self.planes), tag(emitter.lanes), tag(emitter.scaled), tag(heads_at_once(self.group))
        return emitter.largest_query, *kinds, gained, tag(emitter.query_bytes)

    @cached_property
    def exact_pages(self) -> tuple[Array | tuple[Any, ...], ...]:
        """Keys and values of exact pages, flat, and their tags."""
        assert self.pages is not None
        kind, sides = exact_sides(self.pages)
        return *sides, self.exact_tags_of(kind)

    @cached_property
    def gains(self) -> tuple[Array, Array]:
        """Gains of values, flat, and what their bytes stand for, (Hkv, 256)."""
        assert self.pages is not None
        side = self.pages.values
        if side.gains is None or side.gain_values is None:
            return np.empty(0, np.uint8), np.empty((1, 256), np.float32)
        return side.gains.reshape(-1).numpy(), side.gain_values.numpy()

    def page_call(self, tables: Tables, phases: int = VALUES) -> Bound:
        """Attention on pages, with the tables of `turning`; on bytes it ends after a phase (`bind_bytes`)."""
        place = id(tables), phases
        known = self._page_calls.get(place)
        if known is None:
            known = self._page_calls[place] = tables, self._bound_pages(tables, phases)
        return known[1]

    def _bound_pages(self, tables: Tables, phases: int) -> Bound:
        assert self.pages is not None
        where = self.kv_heads, self.pages.page_size
        if self.pages.keys.centroids is None:
            keys, values, tags = self.exact_pages
            return bound(bind_exact_pages, *where, keys, values, *tags)
        if self.by_bytes:
            own, others = self.byte_sides
            return bound(bind_bytes, *tables, *self.gains, *where, *own, *others, *self.byte_tags, tag(phases))
        first, second = self.coded_sides
        return bound(bind_coded, *tables, *self.gains, *where, *first, *second, *self.tags)

    def turning(self, coded: CodedQuery, pages: PagedTokens) -> tuple[Tables, Tensor]:
        """The tables of `turns`, and phasors in their order, float32, one number after another."""
        width = pages.page_table.shape[1]
        if self._turns is None or self._turns[0] is not coded.frequencies or self._turns[1] != width:
            found = turns(coded.frequencies, width * pages.page_size, coded.query.device)
            tables = found.middles.numpy(), found.rows.numpy(), found.slow.numpy()
            self._page_calls.clear()  # they hold the tables before
            self._turns = coded.frequencies, width, None if found.in_order else found.order, tables
        _, _, order, tables = self._turns
        phasors = coded.phasors.detach()
        if order is not None:
            phasors = phasors[..., order, :]
        return tables, phasors.float().contiguous()


NO_TURNS: Tables = (
    np.empty((0, 0, 2), np.float32),
    np.empty((0, BLOCK), np.float32),
    np.empty((0, POLYNOMIALS), np.float32),
)


def recall(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    ways: tuple[Way, Way],
    rounded: bool,
    planes: int,
) -> Held | None:
    """What was made for the same tensors before, if their owner kept it: their shapes fit together then."""
    owner = _owner(pages, sinks, residual)
    found = None if owner is None else owner.kept.get(_NAME)
    if found is None:
        return None
    made_of, settings, made = found
    same = settings == _settings(query, ways, rounded, planes) and all(
        map(is_, made_of, _made_of(pages, sinks, residual))
    )
    return made if same else None


def hold(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    ways: tuple[Way, Way],
    rounded: bool,
    planes: int,
) -> Held:
    """What kernels take of these tokens, kept for `recall` where arrays are the tensors' own memory."""
    made = Held(query, pages, sinks, residual, ways, rounded, planes)
    owner = _owner(pages, sinks, residual)
    if owner is not None and _lie_as_read(pages, sinks, residual):
        owner.kept[_NAME] = _made_of(pages, sinks, residual), _settings(query, ways, rounded, planes), made
    return made


def _owner(
    pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None
) -> PagedTokens | ExactTokens | None:
    return pages if pages is not None else residual if residual is not None else sinks


def _settings(query: Tensor, ways: tuple[Way, Way], rounded: bool, planes: int) -> tuple[object, ...]:
    B, _, Hq, D = query.shape
    return B, Hq, D, query.dtype, query.is_cpu, ways, rounded, planes, cpu_path(), host_form()


def _made_of(
    pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None
) -> tuple[object, object, object, object, object, object, object]:
    paged = (None, None, None) if pages is None else (pages.keys, pages.values, pages.page_size)
    first = (None, None) if sinks is None else (sinks.keys, sinks.values)
    last = (None, None) if residual is None else (residual.keys, residual.values)
    return *paged, *first, *last


def _lie_as_read(pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None) -> bool:
    """Whether arrays are the tensors' own memory: what is written there later is seen."""
    exact = [part for tokens in (sinks, residual) if tokens is not None for part in (tokens.keys, tokens.values)]
    parts = list(exact)
    if pages is not None:
        if pages.keys.centroids is None:
            exact += [pages.keys.pages, pages.values.pages]
        parts += [pages.keys.pages, pages.values.pages]
        parts += [] if pages.values.gains is None else [pages.values.gains]
    served = {torch.float32, torch.bfloat16, torch.float16}
    alike = len({part.dtype for tokens in (sinks, residual) if tokens is not None for part in (tokens.keys,)}) < 2
    return alike and all(part.dtype in served for part in exact) and all(part.is_contiguous() for part in parts)


def _kv_heads(pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None, Hq: int) -> int:
    for part in (sinks, residual):
        if part is not None:
            return part.keys.shape[1]
    return Hq if pages is None else pages.keys.pages.shape[1]
