"""Is the backend right on this very case? Asked before it is timed: a wrong kernel gets no time."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pqkv.cpu_path import cpu_path
from pqkv.errors import KernelError
from pqkv.kernels import ROUNDED, AttentionBackend, ChosenBackend, CodedQuery, ExactTokens, PagedSide, get_backend
from pqkv.kernels.cpu.byte_lookups.prepare import serves_bytes, with_rounded_centroids
from pqkv.speed.synthetic import DecodeInputs

# of look-ups in byte tables in float32, by how many bytes queries and weights are there. A weight's integer is off by
# sqrt(64 scaled / 12) / largest of the root of the weights' squares at most (`Portable`): 7.1e-5, of one byte 1.8e-2. A
# query's moves scores by 3.2e-5 of their standard deviation, here up to 5, one of a byte by 0.6e-2. With bytes all this
# is 2e-2 in the mean of rows, and half as much again for one of them.
BYTE_TOLERANCES = {2: 2e-4, 1: 3e-2}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def check_backend(backend: ChosenBackend, case: DecodeInputs, scale: float, window: int | None) -> tuple[float, float]:
    """The largest relative error of a backend on this case and what it may be; raises `KernelError` where it is larger.
    A backend that rounds centroids is held to the reference on those, where it does.
    """
    limit = TOLERANCE[case.query.dtype]
    expected = case
    rounded, group = backend.name in ROUNDED, case.query.shape[2] // case.pages.keys.pages.shape[1]
    by_bytes = (rounded or backend.name == "cpu") and serves_bytes(case.pages, group, cpu_path(), rounded=rounded)
    if by_bytes:
        limit = max(limit, BYTE_TOLERANCES[ROUNDED.get(backend.name, 2)])
    if rounded and by_bytes:
        keys, values = (with_rounded_centroids(side) for side in (case.pages.keys, case.pages.values))
        expected = replace(case, pages=replace(case.pages, keys=keys, values=values))
    error = relative_error(backend.run, case, scale, window, expected)
    if not error <= limit:
        raise KernelError(f"wrong result: relative error {error:.1e} is above {limit:.0e}, so nothing was timed")
    return error, limit


def relative_error(
    run: AttentionBackend,
    case: DecodeInputs,
    scale: float,
    window: int | None,
    expected: DecodeInputs | None = None,
) -> float:
    """Largest deviation of an output row from `reference` in float64, over the row's norm. One KV head at a time: the
    reference holds a score of every (query head, token, subspace). `expected` is what the reference gets, if not the
    same.
    """
    out, _ = run(case.query, case.pages, case.sinks, case.residual, scale=scale, window=window)
    case = expected or case
    Hkv = case.pages.keys.pages.shape[1]
    G = case.query.shape[2] // Hkv
    reference = get_backend("reference")
    worst = 0.0
    for b in range(case.query.shape[0]):
        for h in range(Hkv):
            pages = replace(
                case.pages,
                keys=_head(case.pages.keys, h),
                values=_head(case.pages.values, h),
                page_table=case.pages.page_table[b : b + 1],
                context_len=case.pages.context_len[b : b + 1],
                query=_heads(case.pages.query, b, slice(h * G, (h + 1) * G)),
            )
            parts = [None if p is None else _part(p, b, h) for p in (case.sinks, case.residual)]
            own = slice(h * G, (h + 1) * G)
            query = case.query[b : b + 1, :, own].double()
            wanted, _ = reference(query, pages, *parts, scale=scale, window=window)
            gap = (out[b : b + 1, :, own].double() - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp(min=1e-30)
            worst = max(worst, float(torch.nan_to_num(gap, nan=torch.inf, posinf=torch.inf).max()))
    return worst


def _head(side: PagedSide, h: int) -> PagedSide:
    def own(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[h : h + 1] if tensor.shape[0] > 1 else tensor

    return replace(
        side,
        pages=side.pages[:, h : h + 1],
        centroids=own(side.centroids),
        channels=own(side.channels),
        scales=own(side.scales),
        gains=None if side.gains is None else side.gains[:, h : h + 1],
        gain_values=own(side.gain_values),
        derived={},
    )


def _heads(coded: CodedQuery | None, b: int, heads: slice) -> CodedQuery | None:
    if coded is None:
        return None
    query, phasors = (part[b : b + 1, :, heads].double() for part in (coded.query, coded.phasors))
    return replace(coded, query=query, phasors=phasors)


def _part(part: ExactTokens, b: int, h: int) -> ExactTokens:
    return ExactTokens(part.keys[b : b + 1, h : h + 1], part.values[b : b + 1, h : h + 1], part.length[b : b + 1])
