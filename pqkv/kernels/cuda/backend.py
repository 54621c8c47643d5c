"""Backend `cuda`: one decoding step on paged codes or paged exact vectors, by Numba kernels on an NVIDIA GPU.

Pages, sinks and residual are cut into splits that write partial results; one kernel merges them all by log-sum-exp.
Several queries at once are prefill, which decodes a tile of pages for all of them: torch does that on the GPU, and
nothing else is left to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_inputs, check_lengths
from pqkv.kernels.cuda.centroids import key_words, value_words
from pqkv.kernels.cuda.coded import CodedVariant, Codes, Phase, coded_kernel, coded_variant
from pqkv.kernels.cuda.exact import ExactVariant, exact_kernel, fitting, rows_kernel
from pqkv.kernels.cuda.launch import DeviceArray, array, bits, compiled, launch, multiprocessors, numbers, words
from pqkv.kernels.cuda.merge import MergeVariant, merge_block, merge_kernel
from pqkv.kernels.cuda.plain import PlainVariant, plain_kernel
from pqkv.kernels.cuda.splits import SHORTEST_SPLIT, choose_coded_splits, choose_splits, stretches
from pqkv.kernels.reference import attention as reference
from pqkv.kernels.turns import turns
from pqkv.kernels.types import ExactTokens, PagedSide, PagedTokens

_HEADS = 8  # query heads of a group that one block serves; larger groups take several blocks

Plan = tuple[int, Callable[[DeviceArray, int, int], None]]  # slots that it fills, and its launch


def attention(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """See `AttentionBackend`."""
    check_inputs(query, pages, sinks, residual, window)
    B, Tq, Hq, _ = query.shape
    if query.dtype == torch.float64:
        raise KernelError("backend 'cuda' accumulates in float32; it serves float32 and half precision")
    if query.numel() == 0 or (pages is None and sinks is None and residual is None):
        return torch.zeros_like(query), query.new_full((B, Tq, Hq), -math.inf, dtype=torch.float32)
    if pages is None or not pages.trusted:
        check_lengths(pages, sinks, residual)
    if Tq != 1:  # said in records by `ChosenBackend.prefill_note`
        out, lse = reference(query, pages, sinks, residual, scale=scale, window=window)
        return out, lse.float()
    if (reason := obstacle(query, pages)) is not None:  # of a step, which is what this backend is for
        raise KernelError(f"backend 'cuda' cannot take this step: {reason}")
    return Step(query, pages, sinks, residual, scale, window or 0).run()


def obstacle(query: Tensor, pages: PagedTokens | None) -> str | None:
    """Why the kernels cannot take these queries, or None."""
    if query.shape[1] != 1:
        return "several queries a sequence are prefill"
    if query.dtype == torch.float64 or (pages is not None and pages.keys.pages.dtype == torch.float64):
        return "they accumulate in float32 and this is float64"
    if query.shape[3] % 8:
        return f"rows are read 128 bits at a time, and {query.shape[3]} elements are no multiple of 8"
    return None


class Step:
    """The launches of one decoding step: every part of the cache writes partial results into slots of its own.

    `splits` of the pages are as near that number as a kernel's blocks can be; None leaves it to `choose_splits`.
    """

    def __init__(
        self,
        query: Tensor,
        pages: PagedTokens | None,
        sinks: ExactTokens | None,
        residual: ExactTokens | None,
        scale: float,
        window: int,
        splits: int | None = None,
    ) -> None:
        self.B, _, self.Hq, self.D = query.shape
        self.query, self.window, self.splits = query, window, splits
        self.pages = pages
        self.sinks, self.residual = sinks, residual
        exact = [(None, None) if part is None else (part.keys, part.length) for part in (sinks, residual)]
        keys = [None if pages is None else pages.keys.pages, *(rows for rows, _ in exact)]
        self.kv_heads = next(side.shape[1] for side in keys if side is not None)
        self.heads = self.Hq // self.kv_heads
        self.group = heads_of_block(self.heads)
        self.chunks = -(-self.heads // self.group)
        present = [exact[0][1], None if pages is None else pages.context_len, exact[1][1]]
        lengths = [length for length in present if length is not None]
        if len(lengths) < len(present):
            none = torch.zeros(self.B, dtype=torch.int32, device=query.device)
            lengths = [none if length is None else length for length in present]
        self.lengths = array(_together(lengths))
        self.scale = bits(scale * math.log2(math.e))  # the kernels' softmax is in powers of two
        self.numbers, self.dtype = numbers(query.flatten(0, 1)), _name(query)
        self.coded, self.coded_dtype, self.turning = self._as_codes_meet()

    def run(self) -> tuple[Tensor, Tensor]:
        """Launch everything; returns out in the query's dtype and lse in float32."""
        plans = [*self.exact_plans(), *self.page_plans()]
        slots = sum(splits for splits, _ in plans)
        partial = self.partial(slots)
        self.start(plans, partial, 0, slots)
        return self.merge(partial, slots)

    def exact_plans(self) -> list[Plan]:
        """Of sinks and residual."""
        parts = [part for part in (self.sinks, self.residual) if part is not None]
        if not parts:
            return []
        if len({part.keys.dtype for part in parts}) > 1:
            raise KernelError(
                f"sinks are {parts[0].keys.dtype} and the residual is {parts[1].keys.dtype}; make them one"
            )
        return [self._rows_plan()]

    def page_plans(self, last: Phase = "values") -> list[Plan]:
        """Of the pages; where a kernel serves them that has phases, up to the `last`."""
        if self.pages is None or not self.pages.page_table.shape[1]:
            return []
        coded = self.pages.keys.centroids is not None
        if coded:
            return [self._coded_plan(self.pages, last)]
        return [self._pages_plan(self.pages)]

    def partial(self, slots: int) -> Tensor:
        """Room for the partial results of so many slots, flat."""
        size = self.B * self.kv_heads * self.chunks * self.group * max(1, slots) * (self.D + 2)
        return torch.empty(size, dtype=torch.float32, device=self.query.device)

    def start(self, plans: list[Plan], partial: Tensor, first: int, slots: int) -> None:
        """Launch `plans`, which fill the slots of `partial` from `first` on."""
        for splits, start in plans:
            start(array(partial), first, slots)
            first += splits

    def merge(self, partial: Tensor, slots: int) -> tuple[Tensor, Tensor]:
        """All slots together; see `run`."""
        device = self.query.device
        out = torch.empty(self.B, self.Hq, self.D, dtype=self.query.dtype, device=device)
        lse = torch.empty(self.B, self.Hq, dtype=torch.float32, device=device)
        rows = self.chunks * self.group  # of a KV head
        uneven = () if rows == self.heads else (self.heads, rows, self.group)
        merge = compiled(merge_kernel, MergeVariant(self.D, self.dtype, uneven=bool(uneven)))
        launch(merge, (self.Hq, self.B), merge_block(self.D), array(partial), slots, numbers(out), array(lse), uneven)
        return out[:, None], lse[:, None]

    def fast(self, pages: PagedTokens) -> CodedVariant | None:
        """The variant of `coded_kernel` that serves coded pages, or None where the plain kernel has to."""
        variant = coded_variant(self.group, _codes(pages.keys), _codes(pages.values), **self._beside(pages))
        served = self.query.dtype != torch.float32 and variant.obstacle(pages.page_size) is None
        return variant if served else None

    def _as_codes_meet(self) -> tuple[DeviceArray, str, tuple[DeviceArray | int, ...]]:
        """The query that coded keys are scored with, its type, and what a kernel takes as `turning`."""
        coded = None if self.pages is None else self.pages.query
        if self.pages is None or coded is None:
            return self.numbers, self.dtype, ()
        query, dtype = numbers(coded.query.flatten(0, 1)), _name(coded.query)
        if not coded.frequencies:
            return query, dtype, ()
        tables = turns(coded.frequencies, self._longest(self.pages), coded.query.device)
        phasors, order = coded.phasors.flatten(0, 1).float(), _order(tables.order, coded.query.device)
        if order is not None:
            phasors = phasors[:, :, order]
        turning = array(phasors), array(tables.middles), array(tables.rows), array(tables.slow)
        return query, dtype, (*turning, len(tables.order), tables.fast)

    def _beside(self, pages: PagedTokens) -> dict[str, Any]:
        """What variants of the kernels of codes have beside codes."""
        return {"turning": bool(self.turning), "gains": pages.values.gains is not None, **self._heads(self.coded_dtype)}

    def _heads(self, dtype: str) -> dict[str, Any]:
        """What variants have of query heads."""
        return {"query": dtype, "uneven": self.chunks * self.group != self.heads}

    def _splits(self, tokens: int, *, paged: bool, shortest: int = SHORTEST_SPLIT) -> int:
        if paged and self.splits is not None:
            return self.splits
        units = self.B * self.kv_heads * self.chunks
        return choose_splits(units, tokens, multiprocessors(self.query.device), shortest=shortest)

    def _pages_plan(self, pages: PagedTokens) -> Plan:
        """Of exact pages."""
        keys, values = pages.keys.pages, pages.values.pages
        variant = fitting(ExactVariant(_name(keys), self.D, self.group, **self._heads(self.dtype)))
        kernel = compiled(exact_kernel, variant)
        splits = self._splits(self._longest(pages), paged=True)

        def start(partial: DeviceArray, first: int, slots: int) -> None:
            launch(
                kernel, (splits, self.kv_heads * self.chunks, self.B), variant.block,
                self.numbers, words(keys), words(values), array(pages.page_table), self.lengths, partial, self.scale,
                *_paging(pages), self.kv_heads, self.chunks, self.heads, self.window, splits, first, slots,
            )  # fmt: skip

        return splits, start

    def _rows_plan(self) -> Plan:
        """Of sinks and residual, rows (B, Hkv, capacity, D): one launch for both."""
        parts = [None if part is None else (_contiguous(part.keys), _contiguous(part.values))
                 for part in (self.sinks, self.residual)]  # fmt: skip
        given = next(part for part in parts if part is not None)
        variant = fitting(ExactVariant(_name(given[0]), self.D, self.group, paged=False, **self._heads(self.dtype)))
        kernel = compiled(rows_kernel, variant)
        # few tokens take as long as one block needs for its own, however few blocks there are
        splits = [
            0 if part is None else self._splits(part[0].shape[2], paged=False, shortest=variant.at_once)
            for part in parts
        ]
        rows = [words(side) for part in parts for side in part or given]  # what no block reads stands in for nothing
        sizes = [(part or given)[0].shape[2] for part in parts]

        def start(partial: DeviceArray, first: int, slots: int) -> None:
            launch(
                kernel, (sum(splits), self.kv_heads * self.chunks, self.B), variant.block,
                self.numbers, *rows, self.lengths, partial, self.scale,
                *sizes, self.kv_heads, self.chunks, self.heads, self.window, *splits, first, slots,
            )  # fmt: skip

        return sum(splits), start

    def _coded_plan(self, pages: PagedTokens, last: Phase) -> Plan:
        sides = pages.keys, pages.values
        fast = self.fast(pages)
        half, together = fast is not None, 1 if fast is None else fast.together
        variant: CodedVariant | PlainVariant
        if fast is None:
            variant = PlainVariant(self.group, _codes(pages.keys), _codes(pages.values), **self._beside(pages))
            kernel = compiled(plain_kernel, variant)
        else:
            variant = replace(fast, last=last)
            kernel = compiled(coded_kernel, variant)
        longest = self._longest(pages)
        if fast is None or self.splits is not None:
            wanted = self._splits(longest, paged=True)
        else:
            wanted = choose_coded_splits(
                self.B * self.kv_heads * self.chunks, longest, multiprocessors(self.query.device),
                most_tokens=fast.tokens, build_tokens=fast.build_tokens, warps=fast.block // 32,
            )  # fmt: skip
        share, splits = stretches(
            longest, wanted, tokens=variant.tokens, together=together, windowed=bool(self.window)
        )  # fmt: skip
        codes = [
            words(side.pages) if half and (side is pages.keys or side.layout == "transposed") else array(side.pages)
            for side in sides
        ]
        books = self._books(pages, fast)
        channels = [_channels(side, self.D) for side in sides]
        books_of = [side.centroids.shape[0] for side in sides if side.centroids is not None]
        gains = _gains(pages.values, words if half else array)

        def start(partial: DeviceArray, first: int, slots: int) -> None:
            launch(
                kernel, (splits, self.kv_heads * self.chunks, self.B), variant.block,
                self.coded, *codes, *books, *map(array, channels), array(pages.page_table), self.lengths,
                partial, self.scale, *_paging(pages), self.kv_heads, self.chunks, self.heads, *books_of,
                self.window, share, first, slots, self.turning, gains,
            )  # fmt: skip

        return splits, start

    def _books(self, pages: PagedTokens, fast: CodedVariant | None) -> list[DeviceArray]:
        """Centroids of keys and values as the kernel reads them."""
        keys, values = pages.keys, pages.values
        if fast is None:
            return [array(side.derive("float32", lambda c: c.float().contiguous())) for side in (keys, values)]
        stage = fast.stages[1]
        return [
            words(keys.derive("key words", key_words)),
            words(values.derive(("value words", stage), lambda c: value_words(c, stage))),
        ]

    def _longest(self, pages: PagedTokens) -> int:
        """Tokens that the longest sequence may have: lengths are on the device, the table's width is known here."""
        return pages.page_table.shape[1] * pages.page_size


def heads_of_block(group: int) -> int:
    """Query heads of a group that one block serves, of as few blocks as can be."""
    return -(-group // -(-group // _HEADS))


def _codes(side: PagedSide) -> Codes:
    assert side.centroids is not None
    return Codes(side.centroids.shape[1], side.nbits, side.centroids.shape[3], side.layout)


def _channels(side: PagedSide, head_dim: int) -> Tensor:
    """(H, D) int64, the natural order where none is given."""
    assert side.centroids is not None
    if side.channels is not None:
        return side.channels.contiguous()
    return side.derive("natural order", lambda c: torch.arange(head_dim, device=c.device).repeat(c.shape[0], 1))


def _gains(side: PagedSide, read: Callable[[Tensor], DeviceArray]) -> tuple[DeviceArray, ...]:
    """What a kernel takes as `gains`, their bytes as `read` makes them an array."""
    if side.gains is None or side.gain_values is None:
        return ()
    return read(side.gains), array(side.gain_values)


@lru_cache(maxsize=8)
def _order(order: tuple[int, ...], device: torch.device) -> Tensor | None:
    """What brings pairs into this order; None where they stand in it. On the device once, not in every step."""
    return None if order == tuple(range(len(order))) else torch.tensor(order, device=device)


def _paging(pages: PagedTokens) -> tuple[int, int, int]:
    """Size of a page, its log2 or -1, and pages of a row of the table."""
    # a division takes as long as ten look-ups, so kernels shift where they can
    size = pages.page_size
    return size, size.bit_length() - 1 if size.bit_count() == 1 else -1, pages.page_table.shape[1]


def _name(tensor: Tensor) -> str:
    """That of its dtype, as variants have it."""
    return str(tensor.dtype).removeprefix("torch.")


def _contiguous(rows: Tensor) -> Tensor:
    """Exact rows as a kernel reads them."""
    return (rows.float() if rows.dtype == torch.float64 else rows).contiguous()


def _together(lengths: list[Tensor]) -> Tensor:
    """Lengths (B,) of sinks, pages and residual, one after another: as they lie, where a cache made them so."""
    first = lengths[0]
    home = (
        first.untyped_storage().data_ptr()
    )  # tensors of their own may be neighbours too, and are nothing to read across
    if all(
        part.is_contiguous()
        and part.untyped_storage().data_ptr() == home
        and part.storage_offset() == first.storage_offset() + i * first.numel()
        for i, part in enumerate(lengths)
    ):
        return first.as_strided((len(lengths) * first.numel(),), (1,))
    return torch.cat(lengths)
