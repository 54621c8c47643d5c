"""From positions to figures: means, paired intervals over windows, buckets of position."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.quality.measures import PositionMeasures
from pqkv.quality.summary import bootstrap, by_position, summarize

ALL = ("perplexity", "agreement", "kld")


def made_up(windows, length, seed=0, spread=1.0):
    """Windows whose exact NLL varies much between windows, the damage little."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda: torch.rand(length, generator=generator, dtype=torch.float64)
    found = []
    for _ in range(windows):
        exact = draw() + spread * float(draw()[0])
        hits = {k: (draw() < 0.9).double() for k in (1, 5)}
        found.append(PositionMeasures(exact + 0.1 * draw(), exact, 0.1 * draw(), hits, hits))
    return found


def everything(windows, name):
    return np.concatenate([getattr(w, name).numpy() for w in windows])


def test_figures_are_those_of_all_positions():
    windows = made_up(5, 40)
    got = summarize(windows, ALL, seed=0)
    nll, exact, kld = (everything(windows, name) for name in ("nll", "nll_exact", "kld"))
    expected = {
        "perplexity": np.exp(nll.mean()), "perplexity_exact": np.exp(exact.mean()),
        "perplexity_ratio": np.exp(nll.mean() - exact.mean()), "kld_mean": kld.mean(), "kld_median": np.median(kld),
        "kld_p99": np.percentile(kld, 99), "kld_max": kld.max(),
        **{f"agreement_at_{k}": np.mean([w.agreement[k].mean() for w in windows]) for k in (1, 5)},
        **{f"top1_in_top_{k}": np.mean([w.top1_in_topk[k].mean() for w in windows]) for k in (1, 5)},
    }  # fmt: skip
    assert {name: metric.value for name, metric in got.items()} == pytest.approx(expected, rel=1e-12)
    assert {metric.n for metric in got.values()} == {200}


@pytest.mark.parametrize("metric", ALL)
def test_only_what_is_asked_for_is_summarized(metric):
    names = set(summarize(made_up(3, 10), (metric,), 0))
    assert names
    prefixes = {"perplexity": "perplexity", "agreement": ("agreement_at", "top1_in_top"), "kld": "kld"}
    assert all(name.startswith(prefixes[metric]) for name in names)


@settings(max_examples=20, deadline=None)
@given(windows=st.integers(2, 12), seed=st.integers(0, 1000))
def test_intervals_contain_their_value(windows, seed):
    for name, metric in summarize(made_up(windows, 15, seed), ALL, seed).items():
        if metric.low is not None:
            assert metric.low - 1e-12 <= metric.value <= metric.high + 1e-12, name
    # equal up to rounding only where all windows agree
    assert (
        summarize(made_up(8, 15, seed), ALL, seed)["perplexity"].low
        < summarize(made_up(8, 15, seed), ALL, seed)["perplexity"].high
    )


def test_a_single_window_has_no_interval():
    assert bootstrap([np.array([1.0])], lambda x: x.mean(-1), 0) == (None, None)
    assert all(m.low is None and m.high is None for m in summarize(made_up(1, 15), ALL, 0).values())


def test_the_interval_is_the_percentile_bootstrap_of_the_mean():
    """For many windows it comes to the mean plus and minus 1.96 standard errors."""
    sample = np.random.default_rng(0).normal(5, 2, size=400)
    low, high = bootstrap([sample], lambda x: x.mean(-1), 0)
    error = sample.std() / 20
    assert low == pytest.approx(sample.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(sample.mean() + 1.96 * error, abs=0.15 * error)
    assert bootstrap([sample], lambda x: x.mean(-1), 0) == (low, high)
    assert bootstrap([sample], lambda x: x.mean(-1), 1) != (low, high)


def test_the_ratio_is_paired():
    """Windows differ by far more than the damage; resampling the two sides apart would drown it."""
    got = summarize(made_up(12, 30, spread=5.0), ALL, 0)
    ratio, plain = got["perplexity_ratio"], got["perplexity"]
    assert 1 < ratio.low < ratio.value < ratio.high
    assert ratio.high - ratio.low < 0.02
    assert plain.high / plain.low > 2


def test_columns_are_resampled_together():
    x = np.arange(10.0)
    assert bootstrap([x, x], lambda a, b: (a - b).mean(-1), 0) == (0.0, 0.0)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 512, 600, 1024, 1500])
def test_buckets_cover_every_position_once(length):
    windows = made_up(3, length)
    rows = by_position(windows)
    assert rows[0]["start"] == 0
    assert rows[-1]["end"] == length
    assert all(a["end"] == b["start"] for a, b in itertools.pairwise(rows))
    assert [row["positions"] for row in rows] == [3 * (row["end"] - row["start"]) for row in rows]
    assert [row["start"] for row in rows] == [edge for edge in (0, 128, 512, 1024) if edge < length]
    weights = np.array([row["positions"] for row in rows])
    assert np.average([row["kld_mean"] for row in rows], weights=weights) == pytest.approx(
        everything(windows, "kld").mean()
    )
    for row in rows:
        part = slice(row["start"], row["end"])
        nll, exact = (np.mean([getattr(w, n)[part].mean() for w in windows]) for n in ("nll", "nll_exact"))
        assert row["perplexity"] == pytest.approx(np.exp(nll))
        assert row["perplexity_exact"] == pytest.approx(np.exp(exact))
        assert row["perplexity_ratio"] == pytest.approx(np.exp(nll - exact))
        assert row["agreement_at_5"] == pytest.approx(np.mean([w.agreement[5][part].mean() for w in windows]))
