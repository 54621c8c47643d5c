"""The report's other listings, on tokens that carry their own number: a window that shifts, a scaling factor, a choice
of tokens.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UNWRITTEN = -1


def shifted(head: int, new: int, window: int) -> tuple[NDArray[np.int64], int]:
    """`llama_kv_cache_update_swa`: which token each of `window` rows holds after it, and the head it leaves. Tokens
    0 ... head - 1 stood in the rows before; rows that nobody wrote are `UNWRITTEN`. Raises `ValueError` where the size
    of the move is negative.
    """
    rows = np.full(window, UNWRITTEN, np.int64)
    rows[:head] = np.arange(head)
    if head + new <= window:
        return rows, head + new
    discard = head + new - window
    count = window - discard
    if count < 0:
        raise ValueError(f"memmove of {count} rows")
    rows[:count] = rows[discard : discard + count].copy()
    return rows, count


def scaling_factor(position: float, base: float, scale: float, trained: int, dim: int) -> float:
    """`yarn_get_scaling_factor`, with the two names that it uses and does not have: ctx_train and dim."""
    del base  # taken, and never looked at
    if position <= trained:
        return 1.0
    return float(1 / (scale * (position / trained)) ** (2 / dim))


def compressed(tokens: NDArray[np.int64], importance: NDArray[np.float64], target: int) -> NDArray[np.int64]:
    """`compress_context`: the `target` most important tokens in order. A vector that is resized beyond its size is
    filled with zeros, which are indices here.
    """
    order = np.argsort(-importance, kind="stable")
    kept = np.zeros(target, np.int64)
    kept[: min(target, len(order))] = order[:target]
    return tokens[np.sort(kept)]


def seen_in_window(first: int, last: int) -> int:
    """Tokens of the report's [first ... last]."""
    return last - first + 1
