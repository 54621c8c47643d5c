"""One query per sequence on the CPU: from tensors to the arrays the kernels read, and back."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from pqkv.kernels.cpu.coded import REGISTER, attend_coded
from pqkv.kernels.cpu.exact import attend_exact_pages, merge
from pqkv.kernels.cpu.lookups import ROW, TRANSPOSED, TRANSPOSED_64
from pqkv.kernels.cpu.paging import Side
from pqkv.kernels.packing import packed_size
from pqkv.kernels.types import ExactTokens, PagedSide, PagedTokens
from pqkv.vector_code import tag

_STRETCH = 8192  # tokens of one unit of work: their scores stay in the second-level cache, tables come often from it
_SHORTEST = 256  # a unit this short pays for being handed to a thread
_LANES = 64  # floats of the centroid rows under way: eight vector registers of eight
_KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

Array = np.ndarray


def decode(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`AttentionBackend` for Tq = 1; returns out in the query's dtype and lse in float64."""
    B, _, Hq, D = query.shape
    Hkv = _kv_heads(pages, sinks, residual, Hq)
    scaled = (query[:, 0].detach().float() * (scale * math.log2(math.e))).numpy()
    lengths = [_lengths(part, B) for part in (sinks, pages, residual)]
    starts = _starts(lengths, window)
    stretches = _stretches(pages, lengths[1], B * Hkv)
    G = Hq // Hkv
    out = np.empty((B, Hkv, stretches, G, D), np.float32)
    top, total = (np.empty((B, Hkv, stretches, G), np.float32) for _ in range(2))
    if pages is not None and stretches:
        run = _coded if pages.keys.centroids is not None else _exact
        run(scaled, pages, lengths[1], starts[1], Hkv, stretches, (out, top, total))
    kind, exact = _exact_parts(sinks, residual, Hkv, D)
    result, lse = np.empty((B, Hq, D), np.float32), np.empty((B, Hq), np.float64)
    merge(
        scaled, out, top, total, *exact[0], lengths[0], starts[0], *exact[1], lengths[2], starts[2], kind, result, lse
    )
    return torch.from_numpy(result)[:, None].to(query.dtype), torch.from_numpy(lse)[:, None]


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


def _stretches(pages: PagedTokens | None, lengths: Array, rows: int) -> int:
    """Units of work the longest sequence is cut into: small enough for the cache, enough of them for the threads.

    A page is never cut, so a contiguous cache, one page a sequence, is one unit a sequence and head.
    """
    longest = int(lengths.max(initial=0))
    if pages is None or not longest:
        return 0
    wanted = max(-(-longest // _STRETCH), -(-2 * numba.get_num_threads() // rows))
    return max(1, min(wanted, longest // _SHORTEST))


def _stretch_pages(pages: PagedTokens, lengths: Array, stretches: int) -> int:
    return max(1, -(-int(lengths.max()) // (stretches * pages.page_size)))


def _coded(
    query: Array, pages: PagedTokens, lengths: Array, starts: Array, Hkv: int, stretches: int, into: tuple[Array, ...]
) -> None:
    G = query.shape[1] // Hkv
    unit = next(u for u in (8, 4, 2, 1) if u * G <= REGISTER or u == 1)
    attend_coded(
        query,
        lengths,
        starts,
        pages.page_table.numpy(),
        Hkv,
        pages.page_size,
        _stretch_pages(pages, lengths, stretches),
        *_side(pages.keys, pages.page_size, G),
        *_side(pages.values, pages.page_size, G),
        *into,
        tag(G),
        tag(unit),
    )


def _side(side: PagedSide, page_size: int, G: int) -> Side:
    assert side.centroids is not None
    M, _, d_sub = side.centroids.shape[1:]
    transposed = side.layout == "transposed"
    block = next(j for j in (8, 4, 2, 1) if M % j == 0 and (j == 1 or j * G * d_sub <= _LANES))
    in_place = side.nbits == 8
    order = ROW if not transposed else TRANSPOSED_64 if page_size == 64 or not in_place else TRANSPOSED
    return Side(
        pages=side.pages.reshape(-1).numpy(),
        line=packed_size(page_size if transposed else M, side.nbits),
        centroids=side.centroids.detach().float().contiguous().numpy(),
        channels=_channels(side),
        unpacked=tag(0 if in_place else 1 if side.nbits < 8 else 2),
        d_sub=tag(d_sub),
        block=tag(block),
        nbits=tag(8 if in_place else 0),
        order=tag(order),
    )


def _channels(side: PagedSide) -> Array:
    assert side.centroids is not None
    if side.channels is not None:
        return side.channels.numpy()
    H, M, _, d_sub = side.centroids.shape
    return np.broadcast_to(np.arange(M * d_sub), (H, M * d_sub)).copy()


def _exact(
    query: Array, pages: PagedTokens, lengths: Array, starts: Array, Hkv: int, stretches: int, into: tuple[Array, ...]
) -> None:
    sides: list[Array | int] = []
    for side in (pages.keys, pages.values):
        pages_ = side.pages if side.pages.dtype in _KINDS else side.pages.float()
        sides += [_flat(pages_), _KINDS[pages_.dtype]]
    attend_exact_pages(
        query,
        pages.page_table.numpy(),
        lengths,
        starts,
        Hkv,
        pages.page_size,
        _stretch_pages(pages, lengths, stretches),
        *sides,
        *into,
    )


def _flat(tensor: Tensor) -> Array:
    return _array(tensor).reshape(-1)


def _array(tensor: Tensor) -> Array:
    tensor = tensor.contiguous()
    return tensor.numpy() if tensor.dtype == torch.float32 else tensor.view(torch.uint16).numpy()


def _exact_parts(
    sinks: ExactTokens | None, residual: ExactTokens | None, Hkv: int, D: int
) -> tuple[int, list[tuple[Array, Array]]]:
    """Keys and values of both parts, and which kind of number they hold; an absent part has no capacity."""
    dtypes = {part.keys.dtype for part in (sinks, residual) if part is not None}
    dtype = dtypes.pop() if len(dtypes) == 1 and dtypes <= set(_KINDS) else torch.float32
    nothing = torch.empty(0, Hkv, 0, D, dtype=dtype)
    parts = [
        (_array(nothing), _array(nothing))
        if part is None
        else (_array(part.keys.detach().to(dtype)), _array(part.values.detach().to(dtype)))
        for part in (sinks, residual)
    ]
    return _KINDS[dtype], parts
