"""How a figure changed between two records of a cell, relative to the first, and an interval of that.

Where both records hold a figure of every window, windows are pairs: the interval is that of a ratio of two means over
pairs (Cochran, Sampling Techniques, 1977, 6.4), with Student's quantiles. Where a cell was run several times on both
sides, runs take their place; otherwise the figures' own intervals are all there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Literal

import numpy as np

from pqkv.metrics import metric_info
from pqkv.record import Record
from pqkv.sweep.student import t_quantile

_LEVEL = 0.05
_WINDOWS_ARE = ("data_sha256", "context", "windows", "score_after", "bos", "chat", "special_tokens", "decode_tokens")
_BY_WINDOW = {"perplexity": "nll", "kld_mean": "kld_mean"}  # metric -> its samples by window
_LOGARITHMS = {"perplexity"}  # whose samples are logarithms of the figure
How = Literal["windows", "runs", "intervals", "none"]


@dataclass(frozen=True, slots=True)
class Change:
    """`second` over `first` less 1, with its interval: None where nothing says how far a figure scatters. `count` says
    over how many windows or runs, 0 for neither.
    """

    metric: str
    first: float
    second: float
    value: float
    low: float | None
    high: float | None
    how: How
    count: int = 0

    @property
    def told(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    @property
    def least_worse(self) -> float | None:
        """How much worse it is at least, negative where it may be better; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.low if metric_info(self.metric).direction == "lower" else -self.high

    @property
    def most_worse(self) -> float | None:
        """How much worse it may be; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return self.high if metric_info(self.metric).direction == "lower" else -self.low

    def windows_for(self, reach: float) -> int | None:
        """As many windows as these, of which the interval would reach `reach` to each side; None where it is not over
        windows.
        """
        if self.how != "windows" or self.low is None or self.high is None:
            return None
        return math.ceil(self.count * ((self.high - self.low) / 2 / reach) ** 2)


def change(metric: str, first: Sequence[Record], second: Sequence[Record], *, comparisons: int = 1) -> Change | None:
    """The change of `metric` from the runs `first` to the runs `second` of one cell, its interval at
    1 - 0.05 / `comparisons`. None where the figure is missing, or where the first is 0 and no share of it can be told.
    """
    values = [[record.metrics[metric].value for record in side] for side in (first, second)]
    known = [[value for value in side if value is not None] for side in values]
    if not all(known) or not all(known[0]):
        return None
    a, b = fmean(known[0]), fmean(known[1])
    tail = _LEVEL / comparisons / 2
    windows = _paired(metric, first[0], second[0]) if len(first) == len(second) == 1 else None
    if windows is not None:
        low, high = _of_windows(*windows, metric in _LOGARITHMS, tail)
        return Change(metric, a, b, b / a - 1, low, high, "windows", len(windows[0]))
    if min(map(len, known)) > 1:
        reach = t_quantile(tail, min(map(len, known)) - 1)  # as if all runs were as few as the fewer
        low, high = _of_spread(a, _error(known[0]), b, _error(known[1]), reach)
        return Change(metric, a, b, b / a - 1, low, high, "runs", min(map(len, known)))
    errors = [_own_error(side[0], metric) for side in (first, second)]
    if errors[0] is None or errors[1] is None:
        return Change(metric, a, b, b / a - 1, None, None, "none")
    if first[0].metrics == second[0].metrics and first[0].samples == second[0].samples:
        return Change(metric, a, b, 0.0, 0.0, 0.0, "intervals")  # the same figures, not two draws
    low, high = _of_spread(a, errors[0], b, errors[1], NormalDist().inv_cdf(1 - tail))
    return Change(metric, a, b, b / a - 1, low, high, "intervals")


def _paired(metric: str, first: Record, second: Record) -> tuple[np.ndarray, np.ndarray] | None:
    """Figures by window of both, where the windows are the same and there are at least two."""
    name = _BY_WINDOW.get(metric, "")
    a, b = (np.array(record.samples.get(name, ())) for record in (first, second))
    if len(a) != len(b) or len(a) < 2:
        return None
    if any(first.config.get(key) != second.config.get(key) for key in _WINDOWS_ARE):
        return None
    return a, b


def _of_windows(a: np.ndarray, b: np.ndarray, logarithms: bool, tail: float) -> tuple[float, float]:
    """Interval of the ratio of two means over the same windows (n,), less 1; of means of logarithms, that of the ratio
    of what these stand for. Percentiles of windows drawn with replacement are too narrow for few windows: they tell
    what chance did of eight twice as often as they say (`experiments/checks/compare_tells.py`).
    """
    ratio = 0.0 if logarithms else b.mean() / a.mean()
    apart = b - a if logarithms else (b - ratio * a) / a.mean()
    reach = t_quantile(tail, len(a) - 1) * _error(apart)
    if logarithms:
        return float(np.expm1(apart.mean() - reach)), float(np.expm1(apart.mean() + reach))
    return float(ratio - 1 - reach), float(ratio - 1 + reach)


def _of_spread(a: float, error_a: float, b: float, error_b: float, reach: float) -> tuple[float, float]:
    """`reach` standard errors about b / a - 1, from those of both by first-order propagation."""
    error = abs(b / a) * ((error_a / a) ** 2 + (error_b / b) ** 2) ** 0.5 if b else error_b / abs(a)
    return b / a - 1 - reach * error, b / a - 1 + reach * error


def _error(values: Sequence[float] | np.ndarray) -> float:
    """Standard error of a mean."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def _own_error(record: Record, metric: str) -> float | None:
    """Standard error that a figure's own 95% interval amounts to."""
    found = record.metrics[metric]
    if found.low is None or found.high is None:
        return None
    return (found.high - found.low) / 2 / NormalDist().inv_cdf(0.975)
