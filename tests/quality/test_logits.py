"""Errors of logits against the definition, written out word by word."""

import math

import pytest
import torch
from models import random_ids

from pqkv.quality.logits import logit_errors
from pqkv.quality.measures import compare


class Words:
    """A head whose states are logits."""

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def __call__(self, states):
        return states.clone()


def pair(count=5, words=9, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    exact = 3 * torch.randn(count, words, generator=generator, dtype=dtype)
    return exact, exact + 0.1 * torch.randn(count, words, generator=generator, dtype=dtype)


def test_it_is_its_definition():
    exact, coded = pair()
    found = logit_errors(exact, coded, Words(9))
    assert found.dtype == torch.float64
    for row, p, q in zip(found.tolist(), exact.tolist(), coded.tolist(), strict=True):
        assert row == pytest.approx(max(abs(a - b) for a, b in zip(p, q, strict=True)) / max(map(abs, p)))


def test_identical_logits_have_none():
    exact, _ = pair()
    assert not logit_errors(exact, exact, Words(9)).any()


def test_a_word_that_both_rule_out_counts_nothing_and_one_alone_everything():
    exact, coded = pair()
    whole = logit_errors(exact[:, :7], coded[:, :7], Words(7))
    for side in (exact, coded):
        side[:, 7:] = -torch.inf
    torch.testing.assert_close(logit_errors(exact, coded, Words(9)), whole)
    coded[1, 2] = -torch.inf
    found = logit_errors(exact, coded, Words(9))
    assert found[1] == math.inf
    torch.testing.assert_close(found[2:], whole[2:])


@pytest.mark.parametrize("word", [0, 8])
def test_what_is_no_number_is_not_hidden(word):
    exact, coded = pair()
    exact[:, 8] = -torch.inf
    coded[:, 8] = -torch.inf
    coded[3, word] = torch.nan
    assert logit_errors(exact, coded, Words(9)).isnan().tolist() == [False, False, False, True, False]


def test_states_are_compared_by_the_logits_of_their_heads_tile_by_tile(tiny, monkeypatch):
    from pqkv.quality import logits

    ids = random_ids(40, batch=2)
    exact, other = tiny.states(ids)
    whole = logit_errors(tiny.logits(ids[:1])[0], tiny.logits(ids[1:])[0], Words(tiny.vocab_size))
    monkeypatch.setattr(logits, "positions_at_once", lambda *_, **__: 7)
    torch.testing.assert_close(logit_errors(exact, other, tiny.head), whole, rtol=0, atol=1e-11)
    doubled = logit_errors(exact, other, tiny.head, exact_head=lambda states: 2 * tiny.head(states))
    assert (doubled - whole).abs().max() > 0.1


def test_it_sees_what_leaves_a_distribution_as_it_was():
    """A constant on all logits: no measure of a distribution can see it."""
    exact, _ = pair(dtype=torch.float64)
    assert compare(exact, exact + 1, torch.zeros(5, dtype=torch.long), (1,)).kld.max() < 1e-12
    assert (logit_errors(exact, exact + 1, Words(9)) > 0.1).all()
