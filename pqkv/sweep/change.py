"""How a figure changed between two records of a cell, relative to the first, and an interval of that.

Where both records hold a figure of every window, windows are pairs and are drawn together. Where a cell was run several
times on both sides, runs are what is drawn; otherwise the figures' own intervals are all there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean
from typing import Literal

import numpy as np

from pqkv.metrics import metric_info
from pqkv.record import Record
from pqkv.sweep.student import t_quantile

_LEVEL = 0.05
_RESAMPLES, _MOST = 20_000, 200_000
_IN_TAIL = 20  # resamples beyond the end of an interval, as far as `_MOST` allows
_WINDOWS_ARE = ("data_sha256", "context", "windows", "score_after", "bos", "chat", "special_tokens", "decode_tokens")
# metric -> the samples by window, and what their mean means
_BY_WINDOW: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "perplexity": ("nll", np.exp),
    "kld_mean": ("kld_mean", lambda mean: mean),
}
How = Literal["windows", "runs", "intervals", "none"]


@dataclass(frozen=True, slots=True)
class Change:
    """`second` over `first` less 1, with its interval: None where nothing says how far a figure scatters."""

    metric: str
    first: float
    second: float
    value: float
    low: float | None
    high: float | None
    how: How

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


def change(
    metric: str, first: Sequence[Record], second: Sequence[Record], *, comparisons: int = 1, seed: int = 0
) -> Change | None:
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
        low, high = _of_windows(*windows, _BY_WINDOW[metric][1], tail, seed)
        return Change(metric, a, b, b / a - 1, low, high, "windows")
    if min(map(len, known)) > 1:
        reach = t_quantile(tail, min(map(len, known)) - 1)  # as if all runs were as few as the fewer
        low, high = _of_spread(a, _error(known[0]), b, _error(known[1]), reach)
        return Change(metric, a, b, b / a - 1, low, high, "runs")
    errors = [_own_error(side[0], metric) for side in (first, second)]
    if errors[0] is None or errors[1] is None:
        return Change(metric, a, b, b / a - 1, None, None, "none")
    if first[0].metrics == second[0].metrics and first[0].samples == second[0].samples:
        return Change(metric, a, b, 0.0, 0.0, 0.0, "intervals")  # the same figures, not two draws
    low, high = _of_spread(a, errors[0], b, errors[1], NormalDist().inv_cdf(1 - tail))
    return Change(metric, a, b, b / a - 1, low, high, "intervals")


def _paired(metric: str, first: Record, second: Record) -> tuple[np.ndarray, np.ndarray] | None:
    """Figures by window of both, where the windows are the same and there are at least two."""
    name = _BY_WINDOW.get(metric, ("", None))[0]
    a, b = (np.array(record.samples.get(name, ())) for record in (first, second))
    if len(a) != len(b) or len(a) < 2:
        return None
    if any(first.config.get(key) != second.config.get(key) for key in _WINDOWS_ARE):
        return None
    return a, b


def _of_windows(
    a: np.ndarray, b: np.ndarray, figure: Callable[[np.ndarray], np.ndarray], tail: float, seed: int
) -> tuple[float, float]:
    """Percentile interval of the ratio of two figures over windows drawn with replacement, the same for both."""
    resamples = int(min(_MOST, max(_RESAMPLES, _IN_TAIL / tail)))
    random = np.random.default_rng(seed)
    found = []
    for start in range(0, resamples, _RESAMPLES):
        draw = random.integers(0, len(a), (min(_RESAMPLES, resamples - start), len(a)))
        found.append(figure(b[draw].mean(-1)) / figure(a[draw].mean(-1)) - 1)
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    return float(low), float(high)


def _of_spread(a: float, error_a: float, b: float, error_b: float, reach: float) -> tuple[float, float]:
    """`reach` standard errors about b / a - 1, from those of both by first-order propagation."""
    error = abs(b / a) * ((error_a / a) ** 2 + (error_b / b) ** 2) ** 0.5 if b else error_b / abs(a)
    return b / a - 1 - reach * error, b / a - 1 + reach * error


def _error(values: Sequence[float]) -> float:
    """Standard error of a mean of runs."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5)


def _own_error(record: Record, metric: str) -> float | None:
    """Standard error that a figure's own 95% interval amounts to."""
    found = record.metrics[metric]
    if found.low is None or found.high is None:
        return None
    return (found.high - found.low) / 2 / NormalDist().inv_cdf(0.975)
