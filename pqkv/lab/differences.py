"""Which method is better, window by window: intervals of differences that hold for all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pqkv.errors import RecordError
from pqkv.record import Record

_RESAMPLES = 20_000  # the tails of a corrected interval are far out
_LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more a method loses than another, in nats of KLD a position; the interval is simultaneous."""

    value: float
    low: float
    high: float

    @property
    def told(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def differences(records: Mapping[str, Record], against: str, seed: int = 0) -> dict[str, Difference]:
    """Mean KLD of each of `records` less that of the one named `against`, on the same windows.

    Paired bootstrap over windows; percentile intervals at 95% for all of them together (Bonferroni: each at 1 - 0.05 /
    their number). Raises `RecordError` for records of different windows; a single window has no interval and is told
    from nothing.
    """
    reference = records[against]
    others = {name: record for name, record in records.items() if name != against}
    level = _LEVEL / max(1, len(others))
    found = {}
    for name, record in others.items():
        check_same_windows(record, reference)
        gaps = np.array(record.samples["kld_mean"]) - np.array(reference.samples["kld_mean"])
        if len(gaps) < 2:
            found[name] = Difference(float(gaps.mean()), -np.inf, np.inf)
            continue
        draws = np.random.default_rng(seed).integers(0, len(gaps), (_RESAMPLES, len(gaps)))
        low, high = np.quantile(gaps[draws].mean(-1), [level / 2, 1 - level / 2])
        found[name] = Difference(float(gaps.mean()), float(low), float(high))
    return found


def check_same_windows(a: Record, b: Record) -> None:
    """Raise `RecordError` unless two records are of the same model, text, windows and exact tokens."""
    keys = ("model_weights", "data_sha256", "context", "windows", "mode", "coded_sinks", "sink_tokens", "residual")
    different = [key for key in keys if a.config.get(key) != b.config.get(key)]
    if different:
        raise RecordError(f"records {a.digest} and {b.digest} differ in {', '.join(different)}: no pairs")
