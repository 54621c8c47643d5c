"""Logits made of hidden states are those of the model's own forward, whatever the family does after its last layer."""

import pytest
import torch
from models import gap, random_ids, sampled_books, tiny_lm
from torch import nn

from pqkv.config import CacheConfig
from pqkv.errors import ModelError
from pqkv.lm import PQKVCache, attach
from pqkv.lm.capture import capture
from pqkv.lm.families import SUPPORTED_FAMILIES
from pqkv.quality.cell_run import Shared
from pqkv.quality.prefills import prefill

AFTER = {"granite": {"logits_scaling": 8.0}, "gemma3_text": {"final_logit_softcapping": 5.0}}


@pytest.mark.parametrize("family", SUPPORTED_FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_head_of_a_family_gives_the_logits_of_its_forward(family, dtype):
    lm, ids = tiny_lm(family, dtype=dtype, **AFTER.get(family, {})), random_ids(70, batch=2)
    states = lm.states(ids)
    assert states.shape == (2, 70, lm.hidden_size)
    with torch.inference_mode():
        assert torch.equal(lm.head(states), lm.model(ids).logits)
    few = torch.cat([lm.head(states[:, i : i + 9]) for i in range(0, 70, 9)], 1)  # by tiles, as they are used
    assert gap(few.double(), lm.logits(ids).double()) <= (1e-12 if dtype == torch.float64 else 0.1)


@pytest.mark.parametrize("family", AFTER)
def test_what_follows_the_last_layer_is_felt(family):
    lm, plain = tiny_lm(family, **AFTER[family]), tiny_lm(family, **dict.fromkeys(AFTER[family], _off(family)))
    ids = random_ids(20)
    assert torch.equal(lm.states(ids), plain.states(ids))
    assert gap(lm.head(lm.states(ids)), plain.head(plain.states(ids))) > 0.1


def _off(family):
    return 1.0 if family == "granite" else None


@pytest.mark.parametrize("change", ["doubled", "capped"])
def test_a_head_that_does_something_else_is_refused_by_name(change):
    lm = tiny_lm()
    original = lm.model.forward

    def forward(*args, **kwargs):
        out = original(*args, **kwargs)
        out.logits = out.logits * 2 if change == "doubled" else 5 * (out.logits / 5).tanh()
        return out

    lm.model.forward = forward
    states = lm.states(random_ids(9))  # they are what they were
    for use in (lm.head.check, lambda: lm.head(states), lambda: Shared(lm)):
        with pytest.raises(ModelError, match="the head of tiny-llama does something after its last layer") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_head_is_held_to_its_forward_once():
    lm, calls = tiny_lm(), []
    original = lm.model.forward

    def forward(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    lm.model.forward = forward
    states = lm.states(random_ids(9))
    assert calls == []
    lm.head(states)
    lm.head(states)
    assert calls == [1]


def test_weights_that_are_no_numbers_show_nothing_of_a_head():
    lm = tiny_lm()
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(torch.nan)
    lm.head.check()
    with torch.no_grad():
        lm.model.model.norm.weight.fill_(1)
    lm.model.lm_head = nn.Sequential(lm.model.lm_head, nn.Tanh())
    lm.head.check()
    assert lm.head(lm.states(random_ids(9))).abs().max() <= 1


def test_states_of_the_newest_tokens_keep_no_others_alive(tiny):
    ids = random_ids(60)
    newest = tiny.states(ids, newest=7)
    assert torch.equal(newest, tiny.states(ids)[:, -7:])
    assert newest.untyped_storage().nbytes() == newest.numel() * newest.element_size()
    assert tiny.states(ids, newest=100).shape[1] == 60


def test_states_on_a_cache_are_those_of_its_logits(tiny, books):
    attach(tiny.model)
    ids, config = random_ids(60), CacheConfig(page_size=8, residual=16, sink_tokens=2)
    states, logits = (PQKVCache(tiny.model.config, books, config) for _ in range(2))
    for i in range(0, 60, 10):
        step = ids[:, i : i + 10]
        assert gap(tiny.head(tiny.states(step, states)), tiny.logits(step, logits)) <= 1e-12


@pytest.mark.parametrize("what", ["capture", "prefill"])
def test_what_needs_no_logits_makes_none(what):
    lm = tiny_lm()
    books = sampled_books(lm)
    lm.model.lm_head.forward = lambda states: pytest.fail("the head ran")
    if what == "capture":
        assert len(capture(lm, random_ids(60).numpy(), 10, 0).keys) == 3
    else:
        assert prefill(lm, random_ids(60), books, CacheConfig()).get_seq_length() == 60
