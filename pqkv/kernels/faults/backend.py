"""A fault as an attention backend: its bookkeeping on the inputs, then the kernel it sits in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_inputs, check_lengths
from pqkv.kernels.faults.catalog import PREFIX, Fault
from pqkv.kernels.faults.emulated import naive_row
from pqkv.kernels.types import AttentionBackend, ExactTokens, PagedSide, PagedTokens


@dataclass(frozen=True, slots=True)
class FaultyAttention:
    """See `AttentionBackend`. The fault is in decoding: several queries at once, a prefill, go to `correct`.

    Raises `KernelError` where a fault of the exact paged kernel is asked to run on codes.
    """

    fault: Fault
    correct: AttentionBackend

    def __call__(
        self,
        query: Tensor,
        pages: PagedTokens | None,
        sinks: ExactTokens | None,
        residual: ExactTokens | None,
        *,
        scale: float,
        window: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run attention."""
        check_inputs(query, pages, sinks, residual, window)
        check_lengths(pages, sinks, residual)
        if query.shape[1] > 1 or pages is None:
            return self.correct(query, pages, sinks, residual, scale=scale, window=window)
        if not self.fault.in_kernel:
            altered = _double_counted(pages) if self.fault.double_count else _of_first_head(pages)
            return self.correct(query, altered, sinks, residual, scale=scale, window=window)
        if pages.keys.centroids is not None or sinks is not None or residual is not None:
            raise KernelError(
                f"backend '{PREFIX}{self.fault.name}' is a fault of attention on exact pages; use --bits 0"
            )
        if self.fault.unread is not None:
            pages = _in_whole_pages(pages, self.fault.unread)
        if query.is_cuda:
            from pqkv.kernels.cuda.naive import faulty_attention

            return faulty_attention(query, pages, self.fault, scale=scale, window=window)
        return _emulated(query, pages, self.fault, scale, window)


def _emulated(
    query: Tensor, pages: PagedTokens, fault: Fault, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    B, _, Hq, D = query.shape
    out = torch.empty(B, Hq, D, dtype=query.dtype)
    lse = torch.empty(B, Hq)
    lengths = pages.context_len.tolist()
    scaled = query[:, 0].float() * (scale * math.log2(math.e))
    for n in sorted(set(lengths)):  # sequences of one length at once: their heads are so many more heads
        rows = torch.tensor([b for b, length in enumerate(lengths) if length == n])
        low = max(0, n - window) if window is not None else 0
        keys, values = (_contiguous(side, pages, rows, low, n) for side in (pages.keys, pages.values))
        mixed, row_lse = naive_row(scaled[rows].flatten(0, 1), keys, values, fault)
        out[rows], lse[rows] = mixed.unflatten(0, (len(rows), Hq)).to(out.dtype), row_lse.unflatten(0, (len(rows), Hq))
    return out[:, None], lse[:, None]


def _contiguous(side: PagedSide, pages: PagedTokens, rows: Tensor, low: int, n: int) -> Tensor:
    """Tokens low ... n of some sequences, which have the same length: (len(rows) * Hkv, n - low, D) float32."""
    count = -(-n // pages.page_size)
    ids = pages.page_table[rows, :count].long()
    owned = side.pages.index_select(0, ids.flatten()).unflatten(0, (len(rows), count))  # (rows, pages, Hkv, P, D)
    return owned.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:, low:n].float()


def _in_whole_pages(pages: PagedTokens, unread: str) -> PagedTokens:
    """Lengths rounded up to whole pages; the slots between hold what `unread` says, written into the pool itself."""
    P = pages.page_size
    for b, n in enumerate(pages.context_len.tolist()):
        if n % P:
            page, previous = int(pages.page_table[b, n // P]), int(pages.page_table[b, max(0, n // P - 1)])
            for side in (pages.keys.pages, pages.values.pages):
                _fill(side[page, :, n % P :], side[previous, :, n % P :], side[page, :, :1], unread, n < P)
    return replace(pages, context_len=(pages.context_len + P - 1) // P * P)


def _fill(slots: Tensor, stale: Tensor, first: Tensor, unread: str, only_page: bool) -> None:
    """Put into slots (Hkv, k, D) zeros, NaN, or what a page that was used before would hold: the vectors of the
    sequence's page before, or in its first page the first vector again.
    """
    if unread == "stale":
        slots[:] = first if only_page else stale
    else:
        slots[:] = 0 if unread == "zero" else math.nan


def _of_first_head(pages: PagedTokens) -> PagedTokens:
    """Every KV head's pages are those of the first; codebooks stay each head's own."""

    def altered(side: PagedSide) -> PagedSide:
        return replace(side, pages=side.pages[:, :1].expand_as(side.pages).contiguous())

    return replace(pages, keys=altered(pages.keys), values=altered(pages.values))


def _double_counted(pages: PagedTokens) -> PagedTokens:
    """The newest full page stands twice in the table: its tokens were flushed, and never taken from the residual.

    Which tokens stand twice does not depend on where the copy stands: softmax knows no order. It goes in front, as the
    last page may be partly filled.
    """
    P = pages.page_size
    full = (pages.context_len // P).long()
    newest = pages.page_table.gather(1, (full - 1).clamp(min=0)[:, None])
    doubled = torch.cat([newest, pages.page_table], 1)
    single = torch.nn.functional.pad(pages.page_table, (0, 1), value=-1)
    table = torch.where((full > 0)[:, None], doubled, single)
    return replace(pages, page_table=table.contiguous(), context_len=pages.context_len + P * (full > 0).int())
