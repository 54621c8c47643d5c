"""The Gaussian bound: known cases, and codes never below it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.codec.composed import Composed, ComposedOptions
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.errors import RecordError
from pqkv.lab.bound import SideLoss, distortion_at, modelled_kld, read_bound, relative_bound, write_bound


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


def test_a_loss_that_is_a_power_of_the_error_is_carried_along_it():
    keys = [SideLoss(b, error, error / 4, 3 * error**2) for b, error in ((2, 0.1), (3, 0.03), (4, 0.01))]
    values = [SideLoss(b, error, error / 2, 5 * error) for b, error in ((2, 0.2), (4, 0.02))]
    found = modelled_kld({"keys": keys, "values": values})
    assert list(found) == [2, 4]
    assert found[2] == pytest.approx(3 * 0.1**2 / 16 + 5 * 0.2 / 2)
    assert found[4] == pytest.approx(3 * 0.01**2 / 16 + 5 * 0.02 / 2)


def test_the_file_of_a_bound_comes_back(tmp_path):
    assert read_bound(tmp_path) == {}
    path = write_bound(tmp_path, {2: 0.05, 4: 0.00123456})
    assert read_bound(tmp_path) == {2: 0.05, 4: 0.001235}
    for damaged in ("bits\n2\n", "bits,modelled_kld\n2,much\n", "bits,modelled_kld\n2\n"):
        path.write_text(damaged)
        with pytest.raises(RecordError, match="is no table of bits and modelled_kld"):
            read_bound(tmp_path)
