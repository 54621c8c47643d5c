"""The report's flash attention: its pseudocode with one defect at a time, and its CUDA kernel thread by thread."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Numbers = NDArray[np.float64]

DEFECTS = {
    "none": "O exp(m - m') l / l' + exp(S - m') V / l'",
    "no rescale": "O is not multiplied by exp(m - m') when the maximum rises",
    "scores for weights": "S V in place of exp(S - m') V",
    "one state for all rows": "m, l and O of a block of queries go on from those of the block before",
    "no scale": "scores are not divided by sqrt(D)",
    "no mask": "rows see tokens behind themselves",
}


def standard(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention (N, D) with all scores in memory."""
    N, D = query.shape
    scores = query @ keys.mT / math.sqrt(D)
    scores = scores.masked_fill(torch.ones(N, N, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1) @ values


def online(query: Tensor, keys: Tensor, values: Tensor, block: int = 64, defect: str = "none") -> Tensor:
    """Causal attention (N, D) in tiles with a running softmax (Milakov and Gimelshein 2018; FlashAttention), or with
    one of `DEFECTS` of the report's pseudocode.
    """
    N, D = query.shape
    out = torch.empty_like(query)
    scale = 1.0 if defect == "no scale" else 1 / math.sqrt(D)
    top = mass = rows = None
    for start in range(0, N, block):
        q = query[start : start + block]
        if top is None or defect != "one state for all rows" or len(top) != len(q):
            top = q.new_full((len(q), 1), -math.inf)
            mass, rows = q.new_zeros(len(q), 1), torch.zeros_like(q)
        assert mass is not None
        assert rows is not None
        places = torch.arange(start, start + len(q))[:, None]
        for first in range(0, N if defect == "no mask" else start + len(q), block):
            k, v = keys[first : first + block], values[first : first + block]
            scores = q @ k.mT * scale
            if defect != "no mask":
                scores = scores.masked_fill(torch.arange(first, first + len(k)) > places, -math.inf)
            best = torch.maximum(top, scores.amax(1, keepdim=True))
            shrink = torch.exp(top - best)
            weights = torch.exp(scores - best)
            total = shrink * mass + weights.sum(1, keepdim=True)
            kept = rows * (mass / total) * (1.0 if defect == "no rescale" else shrink)
            seen = scores.masked_fill(scores.isinf(), 0.0) if defect == "scores for weights" else weights
            rows, top, mass = kept + seen @ v / total, best, total
        out[start : start + block] = rows
    return out


def exact(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`standard` in float64."""
    return standard(query.double(), keys.double(), values.double())


def reported_kernel(query: Numbers, keys: Numbers, values: Numbers, threads: int) -> tuple[Numbers, list[str]]:
    """One row (D,) over all of keys and values (kv, D), as the listing computes it: every thread written out, shared
    memory that nobody wrote read as zero, a store past an array dropped. Returns what is written to O (threads past D
    write nothing, channels that no thread writes are NaN), and what would go wrong on a device, in words.
    """
    kv_size, D = keys.shape
    scale, wrong = 1 / math.sqrt(D), []
    lanes = np.arange(threads)
    loads = lanes < D
    q_shared, k_shared, v_shared = (np.zeros(D) for _ in range(3))
    q_shared[lanes[loads]] = query[lanes[loads]]
    if threads < D:
        wrong.append(f"{threads} threads load {threads} of {D} channels")
    if threads > 32:
        wrong.append(f"{threads} threads write scores_shared[32], and each token counts {threads // 32} times")
    if kv_size % 32:
        wrong.append("__syncthreads inside the branch kv_idx < kv_size")
    top, total = np.full(threads, -np.inf), np.zeros(threads)
    output, scores_shared = np.zeros((threads, D)), np.zeros(max(threads, 32))
    for block in range(-(-kv_size // 32)):
        place = block * 32 + lanes
        here = place < kv_size
        loading = here & loads
        k_shared[lanes[loading]] = keys[place[loading], lanes[loading]]  # channel tid of token tid: the diagonal
        score = float(q_shared @ k_shared) * scale  # the same for every thread
        scores_shared[lanes[here]] = score
        top[here] = np.maximum(top[here], score)
        weights = np.exp(scores_shared[lanes[here]] - top[here])
        total[here] += weights
        v_shared[lanes[loading]] = values[place[loading], lanes[loading]]
        output[here] += weights[:, None] * v_shared
    written = np.full(D, np.nan)
    own = lanes[loads]
    written[own] = output[own, own] / np.where(total[own] > 0, total[own], np.nan)
    return written, wrong
