"""Measures against the definition, written out position by position."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import random_ids

from pqkv.quality.measures import compare, positions_at_once

KS = (1, 5, 10)


def random_pair(count, vocabulary, seed, noise=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    exact = 3 * torch.randn(count, vocabulary, generator=generator, dtype=dtype)
    coded = exact + noise * torch.randn(count, vocabulary, generator=generator, dtype=dtype)
    return exact, coded, torch.randint(0, vocabulary, (count,), generator=generator)


def brute(exact, coded, target, ks):
    """One position in plain Python floats."""
    p, q = ([x - math.log(sum(map(math.exp, row))) for x in row] for row in (exact.tolist(), coded.tolist()))
    kld = sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    order = [sorted(range(len(row)), key=lambda i, row=row: -row[i]) for row in (p, q)]
    agreement, inside = {}, {}
    for k in ks:
        top_p, top_q = order[0][:k], order[1][:k]
        agreement[k] = len(set(top_p) & set(top_q)) / len(top_p)
        inside[k] = float(order[0][0] in top_q)
    return -q[target], -p[target], kld, agreement, inside


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(1, 6), vocabulary=st.integers(2, 40), seed=st.integers(0, 10_000), noise=st.floats(0.01, 5),
    ks=st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True),
)  # fmt: skip
def test_every_measure_is_its_definition(count, vocabulary, seed, noise, ks):
    """k beyond the vocabulary counts the whole of it."""
    exact, coded, targets = random_pair(count, vocabulary, seed, noise)
    got = compare(exact, coded, targets, ks)
    for i in range(count):
        nll, nll_exact, kld, agreement, inside = brute(exact[i], coded[i], int(targets[i]), ks)
        assert got.nll[i] == pytest.approx(nll, abs=1e-10)
        assert got.nll_exact[i] == pytest.approx(nll_exact, abs=1e-10)
        assert got.kld[i] == pytest.approx(kld, abs=1e-10)
        for k in ks:
            assert got.agreement[k][i] == pytest.approx(agreement[k])
            assert got.top1_in_topk[k][i] == inside[k]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_identical_logits_differ_in_nothing(dtype):
    exact, _, targets = random_pair(20, 300, 0)
    exact = exact.to(dtype)
    got = compare(exact, exact.clone(), targets, KS)
    assert torch.equal(got.nll, got.nll_exact)
    assert float(got.kld.max()) == 0
    for k in KS:
        assert got.agreement[k].tolist() == [1.0] * 20
        assert got.top1_in_topk[k].tolist() == [1.0] * 20


def test_kld_is_of_exact_from_coded_and_not_the_other_way_round():
    exact, coded = torch.tensor([[0.0, 0.0]]), torch.tensor([[math.log(0.9), math.log(0.1)]])
    kld = compare(exact, coded, torch.tensor([0]), (1,)).kld
    assert float(kld[0]) == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1), rel=1e-6)


def test_a_constant_added_to_all_logits_changes_nothing():
    exact, coded, targets = random_pair(8, 50, 1)
    plain, shifted = compare(exact, coded, targets, KS), compare(exact + 7, coded - 90, targets, KS)
    torch.testing.assert_close(plain.kld, shifted.kld, rtol=0, atol=1e-10)
    torch.testing.assert_close(plain.nll, shifted.nll, rtol=0, atol=1e-10)


def test_more_positions_than_a_tile_are_all_measured_where_they_stand():
    exact, coded, targets = random_pair(1100, 30, 2)
    budget = 512 * 30 * 8 * 4
    assert positions_at_once(30, budget, torch.float64) < 1100
    whole = compare(exact, coded, targets, KS, budget=budget)
    for i in (0, 511, 512, 1023, 1024, 1099):
        one = compare(exact[i : i + 1], coded[i : i + 1], targets[i : i + 1], KS)
        assert (whole.nll[i], whole.kld[i], whole.agreement[5][i]) == (one.nll[0], one.kld[0], one.agreement[5][0])
    assert all(len(x) == 1100 for x in (whole.nll, whole.nll_exact, whole.kld, *whole.agreement.values()))


def test_kld_is_never_negative_in_float32():
    exact, coded, targets = random_pair(300, 4096, 3, noise=1e-4, dtype=torch.float32)
    kld = compare(exact, coded, targets, (1,)).kld
    assert float(kld.min()) >= 0
    assert 0 < float(kld.mean()) < 1e-6


@pytest.mark.parametrize("masked", ["both", "exact"])
def test_tokens_that_the_exact_cache_rules_out_count_nothing(masked):
    """A masked vocabulary has logits of -inf: p = 0, and 0 log 0 is 0."""
    exact, coded, targets = random_pair(3, 12, 0)
    targets = targets % 10
    whole = compare(exact[:, :10], coded[:, :10], targets, KS)
    exact[:, 10:] = -torch.inf
    if masked == "both":
        coded[:, 10:] = -torch.inf
    found = compare(exact, coded, targets, KS)
    assert torch.isfinite(found.kld).all()
    if masked == "both":
        torch.testing.assert_close(found.kld, whole.kld)
        torch.testing.assert_close(found.nll, whole.nll)
    else:  # what the coded cache gives to tokens of p = 0 is missing elsewhere
        lost = (coded.logsumexp(-1) - coded[:, :10].logsumexp(-1)).double()
        torch.testing.assert_close(found.kld, whole.kld + lost)


def test_a_token_that_only_the_coded_cache_rules_out_costs_infinitely_much():
    exact, coded, targets = random_pair(2, 6, 0)
    coded[0, 3] = -torch.inf
    kld = compare(exact, coded, targets, KS).kld
    assert kld[0] == torch.inf
    assert torch.isfinite(kld[1])


@pytest.mark.parametrize("which", ["exact", "coded"])
def test_logits_that_are_no_numbers_are_not_hidden(which):
    exact, coded, targets = random_pair(2, 6, 0)
    (exact if which == "exact" else coded)[0, 2] = torch.nan
    assert compare(exact, coded, targets, KS).kld[0].isnan()


class Recording:
    """A head of an lm that says how many positions it is asked for at once."""

    def __init__(self, lm):
        self.lm, self.vocab_size, self.asked = lm, lm.vocab_size, []

    def __call__(self, states):
        self.asked.append(len(states))
        return self.lm.head(states)


def test_measures_of_states_are_those_of_their_logits_tile_by_tile(tiny):
    ids = random_ids(80, batch=2)
    exact, other = tiny.states(ids)
    targets = ids[0].roll(-1)
    whole = compare(tiny.logits(ids[:1])[0], tiny.logits(ids[1:])[0], targets, KS)
    head = Recording(tiny)
    found = compare(exact, other, targets, KS, head, budget=20 * tiny.vocab_size * 8 * 4)
    assert len(head.asked) > 4
    assert max(head.asked) <= 23
    for name in ("nll", "nll_exact", "kld"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=0, atol=1e-11)
    assert all(torch.equal(found.agreement[k], whole.agreement[k]) for k in KS)
    assert all(torch.equal(found.top1_in_topk[k], whole.top1_in_topk[k]) for k in KS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_tile_stays_within_its_budget(dtype):
    """Counted as they are made and given back: what is alive at once, beside the two inputs."""
    vocabulary, budget = 20_000, 8 << 20
    exact, coded, targets = random_pair(64, vocabulary, 0)
    exact, coded = exact.to(dtype), coded.to(dtype)
    assert 1 < positions_at_once(vocabulary, budget, dtype) < 64
    compare(exact, coded, targets, KS, budget=budget)  # what is made once
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        compare(exact, coded, targets, KS, budget=budget)
    alive = peak = 0
    for event in sorted(_memory_events(profiler), key=lambda event: event.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    assert 0.5 * budget < peak <= budget


def _memory_events(profiler):
    return [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
