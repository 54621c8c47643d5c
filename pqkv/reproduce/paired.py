"""Two cells on the same windows: a ratio of means with an interval, windows drawn together."""

from __future__ import annotations

import numpy as np

from pqkv.quality.summary import bootstrap
from pqkv.record import Record


def paired_ratio(over: Record, under: Record, sample: str = "kld_mean") -> tuple[float, float, float]:
    """Mean of `sample` over that of the other and its 95% interval: everything (0 to infinity) where nothing can be
    said, of other windows, of fewer than four, or where the other has nothing to divide by.
    """
    a, b = (np.array(record.samples.get(sample, [])) for record in (over, under))
    same = all(over.config.get(key) == under.config.get(key) for key in ("model", "data", "context", "windows"))
    if not same or len(a) != len(b) or not len(a) or not b.mean() > 0:
        return float("nan"), 0.0, float("inf")
    value = float(a.mean() / b.mean())
    if len(a) < 4:  # resampling two or three windows is no interval
        return value, 0.0, float("inf")
    low, high = bootstrap([a, b], lambda x, y: x.mean(-1) / y.mean(-1), over.seed)
    return value, 0.0 if low is None else low, float("inf") if high is None else high
