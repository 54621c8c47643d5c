"""When a measure has seen a fault, has not, or cannot tell: on records whose windows are known."""

import numpy as np
import pytest

from pqkv.config import digest_of
from pqkv.quality.summary import bootstrap
from pqkv.record import Metric, Record
from pqkv.reproduce.quality_degradation.verdicts import BY_METRIC, damaged, gap, mean_interval, sees, taken

KLD, PERPLEXITY, TOP_1 = (BY_METRIC[name] for name in ("kld_mean", "perplexity_ratio", "agreement_at_1"))


def cell(samples=None, *, bits=0.0, windows=8, backend="fault:x", **metrics):
    config = {"bits": bits, "windows": windows, "backend": backend, "metrics": {k: str(v) for k, v in metrics.items()}}
    return Record(
        kind="eval", config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok",
        started_at="2026-01-01T00:00:00+00:00", seconds=1.0, samples=samples or {},
        metrics={name: Metric(value=value[0], low=value[1], high=value[2]) if isinstance(value, tuple)
                 else Metric(value=value) for name, value in metrics.items()},
    )  # fmt: skip


def kld(values, **more):
    return cell({"kld_mean": values}, windows=len(values), kld_mean=float(np.mean(values)), **more)


def test_a_corrected_interval_holds_more():
    values = np.random.default_rng(0).standard_normal(8)
    widths = [np.subtract(*bootstrap([values], lambda x: x.mean(-1), 0, m)[::-1]) for m in (1, 8, 24)]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]
    # beside many draws of its own, without the code under test
    draws = np.random.default_rng(7).choice(values, (200_000, 8)).mean(1)
    low, high = mean_interval(values, 8)
    assert low == pytest.approx(np.quantile(draws, 0.025 / 8), abs=0.03)
    assert high == pytest.approx(np.quantile(draws, 1 - 0.025 / 8), abs=0.03)


def test_a_whole_interval_beyond_the_bound_is_seen_and_one_across_it_is_not_known():
    assert sees(KLD, kld([0.01, 0.012] * 4)) is True
    assert sees(KLD, kld([1e-5, 2e-5] * 4)) is False
    assert sees(KLD, kld([0.0001, 0.0001, 0.0001, 0.01] * 2)) is None


def test_comparisons_can_take_a_verdict_back():
    values = [0.0006, 0.0034, 0.0007, 0.0028, 0.0012, 0.0033, 0.0006, 0.0024]
    assert sees(KLD, kld(values)) is True
    assert sees(KLD, kld(values), comparisons=48) is None


@pytest.mark.parametrize(("values", "said"), [([0.01, 0.02], True), ([1e-5, 1e-6], False), ([0.01, 1e-5], None)])
def test_two_windows_have_to_say_the_same(values, said):
    assert sees(KLD, kld(values)) is said
    assert sees(KLD, kld(values), comparisons=100) is said


def test_perplexity_is_told_by_the_windows_it_is_made_of():
    exact = np.linspace(1, 2, 8)

    def ratio(changes):
        return cell({"nll": (exact + changes).tolist(), "nll_exact": exact.tolist()}, perplexity_ratio=1.0)

    assert sees(PERPLEXITY, ratio(np.full(8, 0.02))) is True
    assert sees(PERPLEXITY, ratio(np.full(8, -0.02))) is True
    assert sees(PERPLEXITY, ratio(np.array([0.001, -0.001] * 4))) is False
    assert sees(PERPLEXITY, ratio(np.array([0.05, -0.05] * 4))) is None  # a ratio of 1 that is one by chance
    low, high = gap(PERPLEXITY, ratio(np.full(8, 0.02)), None, 1)
    assert low == pytest.approx(np.exp(0.02) - 1)
    assert high == pytest.approx(low)


def test_agreement_is_told_by_the_interval_of_its_record_widened():
    assert sees(TOP_1, cell(agreement_at_1=(0.9, 0.88, 0.98))) is True
    assert sees(TOP_1, cell(agreement_at_1=(0.9, 0.88, 0.98)), comparisons=24) is None
    assert sees(TOP_1, cell(agreement_at_1=(1.0, 0.995, 1.0))) is False
    wide = gap(TOP_1, cell(agreement_at_1=(0.9, 0.86, 0.94)), None, 24)
    # 3.078 is the quantile of a normal distribution at 1 - 0.025 / 24, 1.960 that at 0.975
    assert np.allclose(wide, (0.9 - 0.04 * 3.078 / 1.96 - 1, 0.9 + 0.04 * 3.078 / 1.96 - 1), atol=1e-4)


def test_codes_are_held_to_their_twin_window_by_window():
    twin = kld([0.001, 0.01, 0.002, 0.02] * 2, bits=4.0, backend="cpu")
    values = np.array(twin.samples["kld_mean"])
    assert sees(KLD, kld((values + 0.002).tolist(), bits=4.0), twin) is True  # every window, whatever its own figure
    assert sees(KLD, kld((values + 0.0005).tolist(), bits=4.0), twin) is False
    assert sees(KLD, kld((values[::-1] + 0.001).tolist(), bits=4.0), twin) is None
    assert not taken(KLD, twin, None)
    assert sees(KLD, twin, twin) is False


def test_agreement_of_codes_is_no_closer_than_two_intervals_allow():
    twin = cell(bits=4.0, backend="cpu", agreement_at_1=(0.95, 0.93, 0.97))
    assert sees(TOP_1, cell(bits=4.0, agreement_at_1=(0.94, 0.92, 0.96)), twin) is None
    assert sees(TOP_1, cell(bits=4.0, agreement_at_1=(0.5, 0.4, 0.6)), twin) is True
    assert sees(TOP_1, twin, twin) is False


def test_largest_errors_and_answers_are_counted():
    recall, mass = BY_METRIC["recall"], BY_METRIC["softmax_mass_error"]
    assert sees(recall, cell(recall=(0.8, 0.2, 1.0), recall_exact=0.9)) is True
    assert sees(recall, cell(recall=(0.9, 0.2, 1.0), recall_exact=0.9)) is False
    assert sees(mass, cell(softmax_mass_error=3e-5)) is True
    assert sees(mass, cell(softmax_mass_error=1e-5)) is False
    assert sees(mass, cell(softmax_mass_error=None)) is True


def test_damage_is_a_matter_of_logits_where_a_record_has_them():
    assert damaged(cell({"kld_mean": [1.0] * 8}, kld_mean=1.0, logit_error=1e-6)) is False
    assert damaged(cell({"kld_mean": [1e-9] * 8}, kld_mean=1e-9, logit_error=1e-3)) is True
    assert damaged(cell(kld_mean=1e-9, logit_error=None)) is True
    assert damaged(cell(kld_mean=1e-9, logit_error=1e-6, agreement_at_1=None)) is True  # no number
    assert damaged(kld([0.01] * 8)) is True
    assert damaged(kld([1e-9, 0.01])) is None
