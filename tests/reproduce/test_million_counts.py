"""Bins of values, outliers, whole windows and pages: against brute force, and findings at both sides of their lines."""

import numpy as np
import pytest
import torch

from pqkv.codec.planes import Plane
from pqkv.config import digest_of
from pqkv.record import Metric, Record
from pqkv.reproduce.million import bins, outliers, windows


def made(kind, config, tables=None, metrics=None):
    return Record(
        kind=kind, config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok",
        started_at="2026-01-01T00:00:00+00:00", seconds=1.0, tables=tables or {},
        metrics={name: Metric(value=value) for name, value in (metrics or {}).items()},
    )  # fmt: skip


@pytest.mark.parametrize("way", [bins.binned, bins.decoded])
@pytest.mark.parametrize(("n", "M", "C", "d_sub"), [(1, 1, 2, 1), (50, 4, 8, 3), (300, 16, 16, 2)])
def test_values_by_either_way_are_those_of_plain_loops_in_float64(way, n, M, C, d_sub):
    draw = np.random.default_rng(n)
    weights, centroids = draw.random(n), draw.standard_normal((M, C, d_sub))
    codes = draw.integers(0, C, (n, M))
    right = [[sum(weights[j] * centroids[m, codes[j, m], s] for j in range(n)) for s in range(d_sub)] for m in range(M)]
    found = way(weights, codes, centroids)
    np.testing.assert_allclose(found.out, right, rtol=1e-12, atol=1e-12)
    if way is bins.binned:
        assert (found.additions, found.products) == (n * M, M * C * d_sub)
    else:
        assert (found.additions, found.products) == (0, n * M * d_sub)


@pytest.mark.parametrize(("error", "holds"), [(1e-7, "no"), (3e-5, "yes")])
def test_bins_that_were_wrong_would_prove_the_claim(error, holds):
    config = {"tokens": 64, "head_dim": 128, "num_subspaces": 64, "nbits": 8, "seed": 0}
    (row,) = bins._measure(config)["tables"]["bins"]
    assert row["error"] < 2e-6
    (found,) = bins.bins_finding([made(bins.BINS, config, {"bins": [{**row, "error": error}]})])
    assert found["holds"] == holds
    assert "4,096 additions and 32,768 products for 8,192 products" in found["ours"]


def outlier(scale, errors):
    rows = [{"side": "keys", "outlier_is": "channel", "way": way, "code_bits": 4.0, "error": error}
            for way, error in errors.items()]  # fmt: skip
    return made(outliers.OUTLIERS, {"model": "m", "outlier": scale, "samples": 10}, {"errors": rows})


@pytest.mark.parametrize(("at_64", "holds"), [(0.1, "yes"), (0.3, "no"), (None, "not known")])
def test_codes_are_better_where_they_are_at_every_size_of_an_outlier(at_64, holds):
    records = [outlier(1, {outliers.PRODUCT: 0.2, outliers.BY_TOKEN: 0.1})]
    if at_64 is not None:
        records += [outlier(s, {outliers.PRODUCT: e, outliers.BY_TOKEN: 0.2}) for s, e in ((4, 0.1), (64, at_64))]
    (row,) = outliers.outlier_finding(records)
    assert (row["holds"], row["model"]) == (holds, "m")
    assert row["ours"].startswith("squared error 1x 0.2 to 0.1")


def test_the_error_of_an_outlier_is_that_of_the_rest():
    """A rounding to whole numbers, by hand: the channel that is left out errs most and does not count."""

    class Rounded:
        def encode(self, layer, vectors, positions):
            return {"codes": Plane(vectors)}

        def decode(self, layer, planes, positions):
            return planes["codes"].values.float() + self.shift

    codec = Rounded()
    codec.shift = torch.tensor([0.5, 0.0, 9.0])
    vectors = torch.tensor([[[2.0, 1.0, 5.0], [4.0, 3.0, 5.0]]])  # one head, two tokens
    tokens, channels = torch.tensor([True, True]), torch.tensor([True, True, False])
    error, bits = outliers._error(codec, [vectors], tokens, channels)
    assert error == pytest.approx((0.25 + 0.25) / (4 + 1 + 16 + 9))
    assert bits == 32
    error, _ = outliers._error(codec, [vectors], torch.tensor([False, True]), channels)
    assert error == pytest.approx(0.25 / (16 + 9))


def page(size, residual, flushes, kld=0.001):
    about = {"model": "m", "page_size": size, "residual": residual, "num_subspaces": 32, "nbits": 8, "sink_tokens": 4}
    evaluated = {
        **about, "data": "stdlib", "split": "test", "context": 2048, "scope": "head", "channels": "balanced",
        "metric": "query", "mode": "exact-schedule", "windows": 2, "codebooks": "a",
    }  # fmt: skip
    metrics = {"perplexity_exact": 9.0, "perplexity_ratio": 1.0, "agreement_at_1": 0.9, "kld_mean": kld,
               "effective_bits": 5.0, "cache_bytes": 1.0, "code_bits": 4.0}  # fmt: skip
    counted = {"flushes": flushes, "flushes_per_token": flushes / 1024}
    return [
        made("eval", evaluated, metrics=metrics),
        made("million-flushes", {**about, "decoded": 1024}, {"flushes": [counted]}),
    ]  # fmt: skip


@pytest.mark.parametrize(("paged", "times", "holds"), [(16, "2.00", "no"), (4, "0.50", "yes"), (5, "0.62", "no")])
def test_a_window_that_is_flushed_whole_stands_beside_one_that_gives_up_pages(paged, times, holds):
    (row,) = windows.windows_finding([*page(64, 128, paged, 0.001), *page(128, 128, 8, 0.002)])
    assert (row["ours"].split()[0], row["holds"]) == (times, holds)
    assert "64 to 127 and 0 to 127 newest tokens" in row["ours"]


def test_exact_tokens_of_either_policy_are_those_that_the_schedule_leaves():
    from pqkv.schedule import coded_len

    for size, residual in (windows.PAGED, windows.WHOLE):
        exact = {t - coded_len(t, page_size=size, residual=residual, sink_tokens=0) for t in range(1024, 2048)}
        assert exact == set(range(residual - size, residual))


@pytest.mark.parametrize(("exact", "holds"), [(16, "yes"), (8, "no")])
def test_pages_are_weighed(exact, holds):
    config = {"heads": 2, "head_dim": 16, "num_subspaces": 8, "nbits": 8, "seed": 0, "exact_tokens": exact,
              "coded_tokens": 64}  # fmt: skip
    tables = windows._weighed(config)["tables"]
    assert tables["pages"] == [{"exact_bytes": 2 * exact * 2 * 16 * 2, "coded_bytes": 2 * 64 * 2 * 8}]
    (row,) = windows.windows_finding([made(windows.CAPACITY, config, tables)])
    assert row["holds"] == holds
