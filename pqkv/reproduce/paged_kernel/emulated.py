"""The report's kernel position by position, with one fault at a time; and its reductions lane by lane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]
Indices = NDArray[np.int64]

FAULTS = {
    "none": "sound",
    "no normalisation": "weights are not divided by their sum (the report: not full softmax)",
    "no maximum": "exp of the score itself",
    "identity table": "block i of the sequence is block i of the pool",
    "offset + 1": "the slot behind",
    "offset - 1": "the slot before",
    "wrong KV head": "query head h reads KV head h % kv_heads",
    "no causal mask": "every row sees every token",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A prefill: query (n, Hq, D), keys and values (blocks, block_size, Hkv, D), a block and an offset a token."""

    query: Numbers
    keys: Numbers
    values: Numbers
    blocks: Indices
    offsets: Indices


def paged_attention(case: Case, fault: str = "none") -> Numbers:
    """(n, Hq, D) in float32."""
    n, Hq, D = case.query.shape
    size, Hkv = case.keys.shape[1:3]
    blocks = np.arange(n) // size if fault == "identity table" else case.blocks
    shift = {"offset + 1": 1, "offset - 1": -1}.get(fault, 0)
    offsets = (case.offsets + shift) % size
    out = np.empty_like(case.query)
    for h in range(Hq):
        kv = h % Hkv if fault == "wrong KV head" else h // (Hq // Hkv)
        keys, values = (side[blocks, offsets, kv] for side in (case.keys, case.values))
        scores = case.query[:, h] @ keys.T / np.float32(D**0.5)
        if fault != "no causal mask":
            scores = np.where(np.tri(n, dtype=bool), scores, np.float32(-np.inf))
        if fault != "no maximum":
            scores = scores - scores.max(-1, keepdims=True)
        with np.errstate(over="ignore", invalid="ignore"):
            weights = np.exp(scores)
            if fault != "no normalisation":
                weights = weights / weights.sum(-1, keepdims=True)
            out[:, h] = weights @ values
    return out


def right(case: Case) -> NDArray[np.float64]:
    """Causal attention over the slots that are named, in float64, one row at a time."""
    n, Hq, D = case.query.shape
    Hkv = case.keys.shape[2]
    out = np.empty((n, Hq, D))
    for t in range(n):
        for h in range(Hq):
            kv = h // (Hq // Hkv)
            keys, values = (
                side[case.blocks[: t + 1], case.offsets[: t + 1], kv].astype(np.float64)
                for side in (case.keys, case.values)
            )
            scores = keys @ case.query[t, h].astype(np.float64) / D**0.5
            weights = np.exp(scores - scores.max())
            out[t, h] = weights @ values / weights.sum()
    return out


def reduced(values: Numbers, wave: int, taken: int, *, largest: bool) -> Numbers:
    """What each thread of a block holds after a reduction that takes `taken` lanes for a wave, on a device whose waves
    have `wave`: exchanges by `lane ^ offset`, the first lane of every `taken` writes, all read what was written.

    A partner outside the wave gives a lane its own value, as `__shfl_xor` does.
    """
    held = values.copy()
    threads = np.arange(len(values))
    offset = taken // 2
    while offset:
        partner = np.where(offset < wave, threads ^ offset, threads)
        other = held[np.minimum(partner, len(held) - 1)]
        held = np.maximum(held, other) if largest else held + other
        offset //= 2
    written = held[::taken]
    return np.full_like(values, written.max() if largest else written.sum())
