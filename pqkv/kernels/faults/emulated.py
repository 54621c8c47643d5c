"""The naive kernel, thread by thread, in torch on a CPU: same partition of the work, same reductions, same faults.

Thread t of a block takes tokens t, t + block, ... of its query head, so what belongs to a warp is a slice of the padded
row of scores, reshaped to (rounds, warps, 32).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pqkv.kernels.faults.catalog import Fault

_LOWEST = -1.0e30  # what a thread without tokens brings to the maximum
_LN2 = math.log(2)


def naive_row(query: Tensor, keys: Tensor, values: Tensor, fault: Fault) -> tuple[Tensor, Tensor]:
    """One query of one sequence: query (Hq, D) times scale and log2(e), keys and values (Hkv, n, D), all float32
    -> out (Hq, D), lse (Hq,) float32. Nothing to see gives 0 and -inf.
    """
    Hq, D = query.shape
    Hkv, n, _ = keys.shape
    if n == 0:
        return torch.zeros_like(query), query.new_full((Hq,), -math.inf)
    scores = (query.reshape(Hkv, Hq // Hkv, D) @ keys.mT).reshape(Hq, n)
    tops = _by_warp(scores, fault.block, _LOWEST).amax((1, 3))  # (Hq, warps)
    if not fault.own_warp_max:
        tops = tops.amax(1, keepdim=True).expand_as(tops)
    token_warp = torch.arange(n) % fault.block // 32
    weights, kept = _weigh(scores, tops[:, token_warp], fault)
    masses = _by_warp(weights, fault.block, 0.0).sum((1, 3))  # (Hq, warps)
    if not fault.own_warp_sum:
        masses = masses.sum(1, keepdim=True).expand_as(masses)
    mixed = (kept.reshape(Hkv, Hq // Hkv, n) @ values).reshape(Hq, D)
    element_warp = torch.arange(D) % fault.block // 32  # thread e writes elements e, e + block, ...
    return mixed / masses[:, element_warp], (tops[:, 0] + masses[:, 0].log2()) * _LN2


def _by_warp(row: Tensor, block: int, filler: float) -> Tensor:
    """(Hq, n) -> (Hq, rounds, warps, 32), the last round filled up."""
    rounds = -(-row.shape[1] // block)
    padded = row.new_full((row.shape[0], rounds * block), filler)
    padded[:, : row.shape[1]] = row
    return padded.reshape(row.shape[0], rounds, block // 32, 32)


def _weigh(scores: Tensor, tops: Tensor, fault: Fault) -> tuple[Tensor, Tensor]:
    """What each token adds to the mass, and what its value is multiplied by: both (Hq, n), equal unless the buffer of
    scores is too small.
    """
    n, room = scores.shape[1], fault.room
    if room is None or n <= room:
        weights = torch.exp2(scores - tops)
        return weights, weights
    if fault.past_room == "dropped":
        stored = scores.clone()
        stored[:, room:] = 0
        weights = torch.exp2(stored - tops)
        kept = weights.clone()
        kept[:, room:] = 0
        return weights, kept
    # the kernel's three passes over one buffer: the last score stays, then each weight replaces what it was made of
    cells = scores.new_zeros(scores.shape[0], room)
    spans = [slice(start, min(start + room, n)) for start in range(0, n, room)]
    for span in spans:
        cells[:, : span.stop - span.start] = scores[:, span]
    weights = torch.empty_like(scores)
    for span in spans:
        weights[:, span] = torch.exp2(cells[:, : span.stop - span.start] - tops[:, span])
        cells[:, : span.stop - span.start] = weights[:, span]
    return weights, cells[:, torch.arange(n) % room]
