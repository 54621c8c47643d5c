"""What every backend asks of its inputs before it runs: a wrong shape is a sentence, never a wrong read."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.types import ExactTokens, PagedSide, PagedTokens
from pqkv.packing import packed_size

EXACT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_inputs(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    window: int | None = None,
) -> None:
    """Raise `KernelError` for shapes, dtypes, devices or layouts that do not fit together. Reads no lengths."""
    if query.ndim != 4:
        raise KernelError(f"query has shape {tuple(query.shape)}, not (B, Tq, Hq, D)")
    if query.dtype not in EXACT_DTYPES:
        raise KernelError(f"query is {query.dtype}; it needs a float dtype")
    if window is not None and window < 1:
        raise KernelError(f"window is {window}; a query sees at least itself, and None is no window")
    B, _, Hq, D = query.shape
    heads = set()
    for name, part in (("sinks", sinks), ("residual", residual)):
        if part is not None:
            heads.add(_check_exact(name, part, B, D, query.device))
    if pages is not None:
        heads |= _check_pages(pages, B, D, query.device)
        _check_coded_query(pages, query)
    if len(heads) > 1:
        raise KernelError(f"the parts of the cache have {sorted(heads)} KV heads; all need the same number")
    if heads and Hq % (Hkv := heads.pop()):
        raise KernelError(f"{Hq} query heads cannot share {Hkv} KV heads evenly")


def check_step(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    window: int | None = None,
) -> None:
    """`check_inputs` where keys, values and the query's shape are those of a step that was checked: what is left. What
    a cache's own table made is trusted.
    """
    if window is not None and window < 1:
        raise KernelError(f"window is {window}; a query sees at least itself, and None is no window")
    B, device = query.shape[0], query.device
    for name, part in (("sinks", sinks), ("residual", residual)):
        if part is not None:
            _check_vector(f"{name}.length", part.length, B, device)
    if pages is not None:
        if not pages.trusted:
            _check_table(pages, B, device)
        _check_coded_query(pages, query)


def check_lengths(pages: PagedTokens | None, sinks: ExactTokens | None, residual: ExactTokens | None) -> None:
    """Raise `KernelError` for lengths beyond what is there and for page ids that name no page, unless they are trusted.

    Looks at the numbers themselves, so a backend on another device calls it only where it waits for the host anyway.
    """
    if sinks is not None:
        _in_range("sinks.length", sinks.length, sinks.keys.shape[2])
    if residual is not None:
        _in_range("residual.length", residual.length, residual.keys.shape[2])
    if pages is None:
        return
    lengths = _in_range("context_len", pages.context_len, pages.page_table.shape[1] * pages.page_size)
    if not pages.trusted and lengths:
        _check_ids(pages, lengths)


def _check_ids(pages: PagedTokens, lengths: list[int]) -> None:
    check_channels(pages)
    count = min(pages.keys.pages.shape[0], pages.values.pages.shape[0])
    for row, length in zip(pages.page_table.cpu().numpy(), lengths, strict=True):
        ids = row[: -(-length // pages.page_size)]
        if ids.size and (ids.min() < 0 or ids.max() >= count):
            raise KernelError(f"page_table names pages {ids.min()} to {ids.max()}, but there are {count}")


def check_channels(pages: PagedTokens) -> None:
    """Raise `KernelError` for coded elements of channels that are none."""
    for name, side in (("keys", pages.keys), ("values", pages.values)):
        if side.channels is not None:
            channels = side.channels.cpu().numpy()
            if channels.min() < 0 or channels.max() >= channels.shape[1]:
                raise KernelError(f"{name}.channels name channels {channels.min()} to {channels.max()}")


def _in_range(name: str, lengths: Tensor, most: int) -> list[int]:
    values: list[int] = lengths.tolist()
    if values and (min(values) < 0 or max(values) > most):
        raise KernelError(f"{name} is {min(values)} to {max(values)}, but there is room for 0 to {most}")
    return values


def _check_exact(name: str, part: ExactTokens, batch: int, head_dim: int, device: torch.device) -> int:
    keys, values = part.keys, part.values
    if keys.ndim != 4 or keys.shape != values.shape or keys.shape[0] != batch or keys.shape[3] != head_dim:
        raise KernelError(
            f"{name} have keys {tuple(keys.shape)} and values {tuple(values.shape)}; both need (B, Hkv, capacity, D) "
            f"with B = {batch} and D = {head_dim}"
        )
    if keys.dtype != values.dtype or keys.dtype not in EXACT_DTYPES:
        raise KernelError(f"{name} have keys in {keys.dtype} and values in {values.dtype}; both need one float dtype")
    _check_vector(f"{name}.length", part.length, batch, device)
    _check_devices(name, device, keys, values)
    return keys.shape[1]


def _check_pages(pages: PagedTokens, batch: int, head_dim: int, device: torch.device) -> set[int]:
    if (pages.keys.centroids is None) != (pages.values.centroids is None):
        raise KernelError("keys and values must both be exact or both be coded")
    if pages.page_size < 1:
        raise KernelError(f"page_size is {pages.page_size}; it must be at least 1")
    _check_table(pages, batch, device)
    check = _check_exact_side if pages.keys.centroids is None else _check_coded_side
    for name, side in (("keys", pages.keys), ("values", pages.values)):
        _check_devices(f"{name}.pages", device, side.pages)
        check(name, side, pages.page_size, head_dim)
    if pages.keys.pages.dtype != pages.values.pages.dtype:
        raise KernelError(
            f"pages have keys in {pages.keys.pages.dtype} and values in {pages.values.pages.dtype}; both need one dtype"
        )
    return {side.pages.shape[1] for side in (pages.keys, pages.values)}


def _check_table(pages: PagedTokens, batch: int, device: torch.device) -> None:
    table = pages.page_table
    if table.ndim != 2 or table.shape[0] != batch or table.dtype != torch.int32:
        raise KernelError(f"page_table is {table.dtype} {tuple(table.shape)}, not int32 ({batch}, pages)")
    _check_vector("context_len", pages.context_len, batch, device)
    _check_devices("page_table", device, table)


def _check_coded_query(pages: PagedTokens, query: Tensor) -> None:
    coded = pages.query
    if coded is None:
        return
    if pages.keys.centroids is None:
        raise KernelError("exact pages are scored with the query itself: there is nothing for a coded query to meet")
    count = len(coded.frequencies)
    if coded.query.shape != query.shape or coded.phasors.shape != (*query.shape[:3], count, 2):
        raise KernelError(
            f"the coded query has shape {tuple(coded.query.shape)} and phasors {tuple(coded.phasors.shape)}, not "
            f"{tuple(query.shape)} and {(*query.shape[:3], count, 2)}"
        )
    if not coded.query.is_floating_point() or coded.phasors.dtype != coded.query.dtype:
        raise KernelError(
            f"the coded query is {coded.query.dtype}, its phasors {coded.phasors.dtype}; they need one float dtype"
        )
    _check_devices("the coded query", query.device, coded.query, coded.phasors)


def _check_exact_side(name: str, side: PagedSide, page_size: int, head_dim: int) -> None:
    if side.layout != "row":
        raise KernelError(f"exact {name} lie in rows, not {side.layout}")
    if side.pages.ndim != 4 or side.pages.shape[2:] != (page_size, head_dim) or side.pages.dtype not in EXACT_DTYPES:
        raise KernelError(
            f"{name}.pages are {side.pages.dtype} {tuple(side.pages.shape)}, "
            f"not floats (pages, Hkv, {page_size}, {head_dim})"
        )


def _check_coded_side(name: str, side: PagedSide, page_size: int, head_dim: int) -> None:
    assert side.centroids is not None
    if side.centroids.ndim != 4:
        raise KernelError(f"{name}.centroids have shape {tuple(side.centroids.shape)}, not (H, M, C, d_sub)")
    H, M, C, d_sub = side.centroids.shape
    if 2**side.nbits != C or M * d_sub != head_dim:
        raise KernelError(
            f"{name}.centroids have shape {tuple(side.centroids.shape)}: {side.nbits}-bit codes of {head_dim} elements "
            f"need C = {2**side.nbits} and M * d_sub = {head_dim}"
        )
    lines, count = (page_size, M) if side.layout == "row" else (M, page_size)
    shape = (lines, packed_size(count, side.nbits))
    if side.pages.ndim != 4 or side.pages.shape[2:] != shape or side.pages.dtype != torch.uint8:
        raise KernelError(
            f"{name}.pages are {side.pages.dtype} {tuple(side.pages.shape)}, not uint8 (pages, Hkv, {shape[0]}, "
            f"{shape[1]}) as layout {side.layout} of {M} codes of {side.nbits} bits needs"
        )
    if H not in (1, side.pages.shape[1]):
        raise KernelError(f"{name}.centroids are for {H} heads, the pages hold {side.pages.shape[1]}")
    _check_devices(f"{name}.centroids", side.pages.device, side.centroids)
    _check_scales(name, side)
    _check_gains(name, side, page_size)
    if side.channels is None:
        return
    _check_devices(f"{name}.channels", side.pages.device, side.channels)
    if tuple(side.channels.shape) != (H, head_dim) or side.channels.dtype != torch.int64:
        raise KernelError(
            f"{name}.channels are {side.channels.dtype} of shape {tuple(side.channels.shape)}, "
            f"not int64 ({H}, {head_dim})"
        )


def _check_scales(name: str, side: PagedSide) -> None:
    assert side.centroids is not None
    if (side.scales is not None) != (side.centroids.dtype == torch.int8):
        raise KernelError(f"{name}.centroids are {side.centroids.dtype}: scales go with int8, and only with it")
    if side.scales is None:
        return
    H, M, _, d_sub = side.centroids.shape
    if tuple(side.scales.shape) != (H, M, d_sub) or side.scales.dtype != torch.float32:
        raise KernelError(
            f"{name}.scales are {side.scales.dtype} {tuple(side.scales.shape)}, not float32 {(H, M, d_sub)}"
        )
    _check_devices(f"{name}.scales", side.pages.device, side.scales)


def _check_gains(name: str, side: PagedSide, page_size: int) -> None:
    if side.gains is None and side.gain_values is None:
        return
    if name == "keys":
        raise KernelError("gains of keys are not served: they cost more than they gain")
    shape = (side.pages.shape[0], side.pages.shape[1], page_size)
    if side.gains is None or tuple(side.gains.shape) != shape or side.gains.dtype != torch.uint8:
        raise KernelError(f"{name}.gains are not uint8 {shape}, one a token and head")
    table = side.gain_values
    if table is None or tuple(table.shape) != (shape[1], 256) or table.dtype != torch.float32:
        raise KernelError(f"{name}.gain_values are not float32 {(shape[1], 256)}, one a byte and head")
    _check_devices(f"{name}.gains", side.pages.device, side.gains, table)


def _check_vector(name: str, vector: Tensor, batch: int, device: torch.device) -> None:
    if vector.shape != (batch,) or vector.dtype != torch.int32:
        raise KernelError(f"{name} is {vector.dtype} {tuple(vector.shape)}, not int32 ({batch},)")
    _check_devices(name, device, vector)


def _check_devices(name: str, device: torch.device, *tensors: Tensor) -> None:
    for tensor in tensors:
        if tensor.device != device:
            raise KernelError(f"{name} is on {tensor.device}, the query on {device}; move both to one device")
