"""From positions to figures with intervals: paired bootstrap over windows, and buckets of position."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from pqkv.quality.measures import PositionMeasures
from pqkv.record import Metric

_RESAMPLES = 2000
_EDGES = (0, 128, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


def bootstrap(
    columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], seed: int, comparisons: int = 1
) -> tuple[float | None, float | None]:
    """95% percentile interval of `statistic(*columns)` over windows drawn with replacement.

    Each column holds a figure per window (n,); the statistic gets (resamples, n) of each and reduces the last axis.
    Columns are resampled together, so pairs stay pairs. (None, None) for a single window: it has no spread. Where a
    verdict rests on several `comparisons`, each interval is that of 1 - 0.05 / comparisons (Bonferroni), so that all of
    them hold at once 95 times of 100.
    """
    n = len(columns[0])
    if n < 2:
        return None, None
    draw = _draws(n, _RESAMPLES * comparisons, seed)  # the tails hold fifty of them, however thin they are
    tail = 0.025 / comparisons
    low, high = np.quantile(statistic(*(np.asarray(column)[draw] for column in columns)), [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=2)
def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """Windows of each resample (resamples, n); many figures of the same windows are asked for one after another."""
    return np.random.default_rng(seed).integers(0, n, size=(resamples, n))


def finite(value: float | None) -> float | None:
    """A figure as records take it: None for one that is not a number, or infinite."""
    return None if value is None or not np.isfinite(value) else float(value)


def summarize(windows: Sequence[PositionMeasures], metrics: Sequence[str], seed: int) -> dict[str, Metric]:
    """Figures of all windows; `metrics` picks among perplexity, agreement and kld, the error of logits stands where it
    was taken.
    """
    count = sum(len(w.nll) for w in windows)
    found: dict[str, Metric] = {}

    def add(name: str, columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray], unit: str = "") -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # a broken backend's figures may be no numbers
            low, high = bootstrap(columns, statistic, seed)
            value = finite(float(statistic(*columns)))
        found[name] = Metric(value=value, low=finite(low), high=finite(high), unit=unit, n=count)

    def means(parts: Sequence[torch.Tensor]) -> np.ndarray:
        return np.array([float(part.mean()) for part in parts])  # windows are equally long: plain means are fair

    if "perplexity" in metrics:
        nll, exact = means([w.nll for w in windows]), means([w.nll_exact for w in windows])
        add("perplexity", [nll], lambda x: np.exp(x.mean(-1)))
        add("perplexity_exact", [exact], lambda x: np.exp(x.mean(-1)))
        add("perplexity_ratio", [nll, exact], lambda x, y: np.exp((x - y).mean(-1)))
    if "agreement" in metrics:
        for k in windows[0].agreement:
            add(f"agreement_at_{k}", [means([w.agreement[k] for w in windows])], lambda x: x.mean(-1))
            add(f"top1_in_top_{k}", [means([w.top1_in_topk[k] for w in windows])], lambda x: x.mean(-1))
    if "kld" in metrics:
        add("kld_mean", [means([w.kld for w in windows])], lambda x: x.mean(-1), "nats")
        every = torch.cat([w.kld for w in windows]).numpy()
        for name, value in (
            ("kld_median", np.median(every)),
            ("kld_p99", np.quantile(every, 0.99)),
            ("kld_max", every.max()),
        ):
            found[name] = Metric(value=finite(value), unit="nats", n=count)
    if errors := [w.logit_error for w in windows if w.logit_error is not None]:
        found["logit_error"] = Metric(value=finite(float(torch.cat(errors).max())), n=count)
    return found


def by_position(windows: Sequence[PositionMeasures], first: int = 0) -> list[dict[str, Any]]:
    """The same measures per bucket of position in the window, whose scored positions begin at `first`."""
    length = first + len(windows[0].nll)
    rows = []
    for low, high in zip(_EDGES, [*_EDGES[1:], 1 << 62], strict=True):
        start, end = max(low, first), min(high, length)
        if start >= end:
            continue
        span = slice(start - first, end - first)
        nll = torch.stack([w.nll[span] for w in windows]).mean()
        exact = torch.stack([w.nll_exact[span] for w in windows]).mean()
        rows.append(
            {
                "start": start,
                "end": end,
                "positions": (end - start) * len(windows),
                "perplexity": finite(float(nll.exp())),
                "perplexity_exact": finite(float(exact.exp())),
                "perplexity_ratio": finite(float((nll - exact).exp())),
                "kld_mean": finite(float(torch.stack([w.kld[span] for w in windows]).mean())),
            }
            | {
                f"agreement_at_{k}": float(torch.stack([w.agreement[k][span] for w in windows]).mean())
                for k in windows[0].agreement
            }
        )
    return rows
