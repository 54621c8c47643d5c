"""The Gaussian bound: known cases, and codes never below it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.codec.composed import Composed, ComposedOptions
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.config import digest_of
from pqkv.errors import ConfigError, RecordError
from pqkv.lab.bound import (
    BOUND_FOLDER,
    SideLoss,
    bound_losses,
    distortion_at,
    modelled_kld,
    read_bound,
    relative_bound,
)
from pqkv.record import Record, RecordStore


def test_one_variance_halves_by_six_decibels_a_bit():
    for bits in (0, 1, 2, 3.5):
        assert distortion_at(torch.full((8,), 3.0), bits) == pytest.approx(3 * 2 ** (-2 * bits))


def test_what_lies_under_the_water_is_not_coded():
    # one loud channel takes all 4 bits of 2 channels: 100 / 2^(2 * 4), and the quiet one is left
    assert distortion_at(torch.tensor([100.0, 0.01]), 2) == pytest.approx((100 / 2**8 + 0.01) / 2)


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), st.floats(0, 6))
def test_it_is_the_least_of_all_ways_to_deal_out_the_bits(variances, bits):
    """Rates of the water level add up to the budget, and moving any of it loses."""
    lam = torch.tensor(variances, dtype=torch.float64)
    found = distortion_at(lam, bits) * len(variances)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        share = torch.rand(len(variances), generator=generator, dtype=torch.float64)
        rates = share / share.sum() * bits * len(variances)
        assert found <= float((lam * 2 ** (-2 * rates)).sum()) * (1 + 1e-9)


def test_codes_of_a_gaussian_do_not_fall_below_it():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 20000, 8, generator=generator) @ torch.randn(8, 8, generator=generator)
    metric = torch.randn(1, 8, 8, generator=generator)
    metric = metric @ metric.mT
    samples = Samples((x,), (x,), (torch.ones(1, 8),), torch.arange(20000), (Rotary(torch.ones(4).double()),),
                      (metric,), (metric,))  # fmt: skip
    bound = relative_bound(samples, "keys", [3.0])[3.0]
    options = ComposedOptions.parse({"num_subspaces": 4, "nbits": 6, "metric": "full", "transform": "klt"})
    codec = Composed.learnt(options, "keys", samples)
    e = (codec.restore(0, x[None], samples.positions)[0] - x).double()
    spread = (x - x.mean(1, keepdim=True)).double()
    ours = float(((e @ metric.double()) * e).sum() / ((spread @ metric.double()) * spread).sum())
    assert bound < ours < 10 * bound


@pytest.fixture(scope="module")
def turning():
    """Keys of one covariance and mean before rotary embedding, at positions 0 to 49, in a metric of queries."""
    generator = torch.Generator().manual_seed(1)
    rotary = Rotary(torch.tensor([1.0, 0.3, 0.02], dtype=torch.float64))  # of 8 channels two do not turn
    still = torch.randn(2, 5000, 8, generator=generator) @ torch.randn(2, 8, 8, generator=generator) + 2
    positions = torch.arange(5000) % 50
    metric = torch.randn(2, 8, 8, generator=generator)
    metric = metric @ metric.mT
    keys = rotary.turn(still, positions)
    return still, Samples((keys,), (keys,), (torch.ones(2, 8),), positions, (rotary,), (metric,), (metric,))


def test_what_knows_its_position_may_lose_less(turning):
    _, samples = turning
    still = relative_bound(samples, "keys", [3.0])[3.0]
    around = relative_bound(samples, "keys", [3.0], around="turning")[3.0]
    knowing = relative_bound(samples, "keys", [3.0], positions=50)[3.0]
    assert knowing < 0.9 * around < 0.9 * 0.9 * still


def test_the_bound_at_positions_is_that_of_each_turned_covariance(turning):
    still, samples = turning
    metric, (rotary,) = samples.query_moments[0].double(), samples.rotary
    lost = 0.0
    for position in (0, 16, 33, 49):  # evenly out of 0 to 49, rounded down as places of a sorted list
        angle = position * rotary.frequencies
        turn = torch.eye(8, dtype=torch.float64)
        for i, a in enumerate(angle):
            turn[i, i], turn[i, i + 3], turn[i + 3, i], turn[i + 3, i + 3] = a.cos(), -a.sin(), a.sin(), a.cos()
        for head in range(2):
            seen = turn @ still[head].double().mT.cov() @ turn.mT @ metric[head]
            eigenvalues = torch.linalg.eigvals(seen).real  # those of root^T C root
            lost += 8 * distortion_at(eigenvalues, 2.0) / 4
    x = samples.keys[0].double()
    spread = sum(float((x[h].mT.cov() @ metric[h]).trace()) for h in range(2))
    found = relative_bound(samples, "keys", [2.0], positions=4)[2.0]
    assert found == pytest.approx(lost / spread, rel=1e-5)


def test_a_bound_by_position_wants_positions():
    x = torch.randn(1, 50, 8)
    samples = Samples((x,), (x,), (torch.ones(1, 8),))
    with pytest.raises(ConfigError, match="wants positions"):
        relative_bound(samples, "keys", [2.0], positions=4)


def test_a_loss_that_is_a_power_of_the_error_is_carried_along_it():
    keys = [SideLoss(b, error, error / 4, 3 * error**2) for b, error in ((2, 0.1), (3, 0.03), (4, 0.01))]
    values = [SideLoss(b, error, error / 2, 5 * error) for b, error in ((2, 0.2), (4, 0.02))]
    found = modelled_kld({"keys": keys, "values": values})
    assert list(found) == [2, 4]
    assert found[2] == pytest.approx(3 * 0.1**2 / 16 + 5 * 0.2 / 2)
    assert found[4] == pytest.approx(3 * 0.01**2 / 16 + 5 * 0.02 / 2)


def bound_record(model="m", started="2026-01-01T00:00:00+00:00", change=lambda row: row):
    rows = [
        {"side": side, "bits": bits, "error": 0.1**bits, "bound": 0.05**bits, "kld": 0.2**bits}
        for side in ("keys", "values") for bits in (2, 3)
    ]  # fmt: skip
    config = {"model": model, "at": started}
    return Record(
        kind="bound", config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok", started_at=started,
        seconds=1.0, tables={"losses": [change(row) for row in rows]},
    )  # fmt: skip


def test_the_newest_record_of_a_model_is_its_bound(tmp_path):
    assert read_bound(tmp_path, "m") == {}
    store = RecordStore(tmp_path / BOUND_FOLDER)
    store.write(bound_record())
    store.write(bound_record(model="another"))
    newest = bound_record(started="2026-01-02T00:00:00+00:00", change=lambda row: row | {"kld": 3 * row["kld"]})
    store.write(newest)
    found = read_bound(tmp_path, "m")
    assert found == pytest.approx(modelled_kld(bound_losses(newest)))
    assert found[2] == pytest.approx(3 * 2 * 0.2**2 * 0.25 ** (math.log(0.2) / math.log(0.1)))  # a power through both


@pytest.mark.parametrize("change", [lambda row: {"side": "keys"}, lambda row: row | {"kld": "much"}])
def test_a_record_without_losses_is_refused(tmp_path, change):
    RecordStore(tmp_path / BOUND_FOLDER).write(bound_record(change=change))
    with pytest.raises(RecordError, match="holds no losses of sides and bits: make it again"):
        read_bound(tmp_path, "m")
