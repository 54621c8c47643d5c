"""The softmax probe passes the right backend and sees a faulty one, whatever the fault does to output or lse."""

import math

import pytest
import torch
from models import random_ids

from pqkv.config import CacheConfig
from pqkv.kernels import ExactTokens, get_backend, register_backend, registry
from pqkv.quality.modes import run_coded
from pqkv.quality.softmax_mass import SoftmaxMassProbe

SMALL = CacheConfig(page_size=8, residual=16, sink_tokens=2)
right = get_backend("reference")


def lengths(numbers):
    return torch.tensor(numbers, dtype=torch.int32)


def unnormalised(query, *parts, **more):
    out, lse = right(query, *parts, **more)
    return out * 1.001, lse


def lse_off(query, *parts, **more):
    out, lse = right(query, *parts, **more)
    return out, lse + 1e-3


def lse_off_in_one_head(query, *parts, **more):
    out, lse = right(query, *parts, **more)
    return out, lse + 1e-3 * (torch.arange(lse.shape[-1]) == 3)


def without_sinks(query, pages, sinks, residual, **more):
    """Sums to one, over too few columns."""
    return right(query, pages, None, residual, **more)


def other_scale(query, *parts, scale, **more):
    return right(query, *parts, scale=scale * 1.01, **more)


def nan_lse(query, *parts, **more):
    out, lse = right(query, *parts, **more)
    return out, torch.full_like(lse, math.nan)


def minus_infinite_lse(query, *parts, **more):
    out, lse = right(query, *parts, **more)
    return out, torch.full_like(lse, -math.inf)


def plus_infinite_lse(query, *parts, **more):
    out, lse = right(query, *parts, **more)
    return out, torch.full_like(lse, math.inf)


@pytest.fixture
def probed(monkeypatch):
    """Run a model in token mode on a backend, probed."""

    def run(backend, lm, ids, books, config=SMALL):
        monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))  # registrations end with the test
        register_backend("probed", lambda: backend)
        probe = SoftmaxMassProbe(backend)
        run_coded(lm, ids, books, config.model_copy(update={"backend": "probed"}), "token", probe=probe)
        return probe

    return run


@pytest.mark.parametrize("shape", ["paged", "contiguous", "exact"])
def test_the_reference_backend_is_right_to_rounding(probed, tiny, books, shape):
    config = SMALL.model_copy(update={"paged": shape != "contiguous"})
    probe = probed(right, tiny, random_ids(70, batch=2), None if shape == "exact" else books, config)
    assert probe.calls == 3 * 2  # step 64 and the last, of three layers
    assert probe.mass_error <= 1e-12
    assert probe.lse_error <= 1e-12


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_backend_is_right_on_the_bundled_model(probed, reference, prose, backend):
    from models import sampled_books

    books = sampled_books(reference, 16, 6)
    probe = probed(get_backend(backend), reference, prose[:, :70], books, SMALL)
    assert probe.calls == 6 * 2
    assert probe.mass_error <= 1e-5
    assert probe.lse_error <= 1e-5


FAULTS = {
    unnormalised: (1e-3, 0),
    lse_off: (0, 1e-3),
    lse_off_in_one_head: (0, 1e-3),
    without_sinks: (0, None),
    other_scale: (0, None),
    nan_lse: (0, math.nan),
    minus_infinite_lse: (0, math.inf),
    plus_infinite_lse: (0, 1),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_faulty_backend_is_seen(probed, tiny, books, fault):
    probe = probed(fault, tiny, random_ids(66), books)
    mass, lse = FAULTS[fault]
    assert probe.mass_error == pytest.approx(mass, rel=0.01, abs=1e-9, nan_ok=True)
    if lse is None:
        assert probe.lse_error > 1e-4
    else:
        assert probe.lse_error == pytest.approx(lse, rel=0.01, abs=1e-9, nan_ok=True)


def test_the_worst_deviation_is_kept_and_nan_stays(tiny):
    probe = SoftmaxMassProbe(right)
    tokens = ExactTokens(*(torch.randn(1, 1, 4, 8) for _ in range(2)), lengths([4]))
    query = torch.randn(1, 1, 2, 8)
    out, lse = right(query, None, None, tokens, scale=0.3)
    look = lambda lse: probe(query, None, None, tokens, scale=0.3, window=None, out=out, lse=lse)
    for shift, worst in ((0.01, 0.01), (0.1, 0.1), (0.02, 0.1), (math.nan, math.nan), (0.0, math.nan)):
        look(lse - shift)
        assert probe.lse_error == pytest.approx(math.expm1(worst), rel=1e-3, nan_ok=True)


def test_one_nan_in_an_output_is_seen():
    def nan_out(query, *parts, **more):
        out, lse = right(query, *parts, **more)
        return torch.where(torch.arange(out.shape[-1]) == 5, math.nan, out), lse

    probe = SoftmaxMassProbe(nan_out)
    tokens = ExactTokens(*(torch.randn(1, 1, 4, 8) for _ in range(2)), lengths([4]))
    query = torch.randn(1, 1, 2, 8)
    out, lse = right(query, None, None, tokens, scale=0.3)
    probe(query, None, None, tokens, scale=0.3, window=None, out=out, lse=lse)
    assert math.isnan(probe.mass_error)
    assert probe.lse_error < 1e-5


def test_padding_queries_do_not_count():
    """Three queries on two tokens: the first stands at position -1 and sees nothing."""
    probe = SoftmaxMassProbe(right)
    tokens = ExactTokens(*(torch.randn(2, 2, 5, 8) for _ in range(2)), lengths([2, 5]))
    query = torch.randn(2, 3, 4, 8)
    out, lse = right(query, None, None, tokens, scale=0.3)
    assert bool(lse[0, 0].isinf().all())
    probe(query, None, None, tokens, scale=0.3, window=None, out=out, lse=lse)
    assert max(probe.mass_error, probe.lse_error) < 1e-5


def test_a_sliding_window_is_probed_over_its_columns():
    probe = SoftmaxMassProbe(right)
    tokens = ExactTokens(*(torch.randn(1, 2, 9, 8) for _ in range(2)), lengths([9]))
    query = torch.randn(1, 3, 4, 8)
    out, lse = right(query, None, None, tokens, scale=0.3, window=4)
    probe(query, None, None, tokens, scale=0.3, window=4, out=out, lse=lse)
    assert max(probe.mass_error, probe.lse_error) < 1e-5
    probe(query, None, None, tokens, scale=0.3, window=5, out=out, lse=lse)
    assert probe.lse_error > 1e-2


def test_an_inactive_probe_looks_at_nothing():
    probe = SoftmaxMassProbe(lambda *_, **__: pytest.fail("it looked"))
    probe.active = False
    tokens = ExactTokens(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4), lengths([1]))
    query = torch.zeros(1, 1, 1, 4)
    probe(query, None, None, tokens, scale=1, window=None, out=query, lse=torch.zeros(1, 1, 1))
    assert probe.calls == 0
