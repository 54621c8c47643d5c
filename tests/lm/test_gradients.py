"""Gradients by keys and values are those that finite differences find in transformers' own attention."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from models import random_ids, tiny_lm, untouched

from pqkv.lm.capture import capture
from pqkv.lm.gradients import capture_gradients

LENGTH = 150  # more rows than are backed through the head at once


def gradients(lm, windows, count, seed, **more):
    return capture_gradients(lm, capture(lm, windows, count, seed, **more), windows, count, seed, **more)


def in_double_precision(model):
    """Norms of transformers round to float32, which is more than a finite difference."""

    def norm_of(module):
        eps, shift = getattr(module, "variance_epsilon", None) or module.eps, "Gemma" in type(module).__name__

        def norm(x):
            return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * (module.weight + shift)

        return norm

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = norm_of(module)


def loss(model, window, side, layer, head, position, channel, step, positions):
    """Negative log-likelihood of a window with one number in one layer's keys or values moved by `step`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def moved(module, query, key, value, *args, **kwargs):
        if module.layer_idx == layer:
            tensor = (key if side == "keys" else value).clone()
            tensor[0, head, position, channel] += step
            key, value = (tensor, value) if side == "keys" else (key, tensor)
        return sdpa_attention_forward(module, query, key, value, *args, **kwargs)

    AttentionInterface.register("moved", moved)
    AttentionMaskInterface.register("moved", sdpa_mask)
    model.set_attn_implementation("moved")
    ids = torch.from_numpy(window)[None]
    with torch.inference_mode():
        logits = model(ids, use_cache=False, position_ids=positions[None]).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="sum").item()


@pytest.mark.parametrize("family", ["llama", "qwen3", "granite", "gemma3_text"])
def test_finite_differences_find_the_same(family):
    more = {"logits_scaling": 2.0} if family == "granite" else {}
    if family == "gemma3_text":
        more = {"final_logit_softcapping": 3.0, "layer_types": ["sliding_attention", "full_attention"] * 2}
        more |= {"num_hidden_layers": 4, "sliding_window": 16}
    lm = tiny_lm(family, **more)
    in_double_precision(lm.model)
    windows, starts = random_ids(LENGTH, batch=2, seed=3).numpy(), np.array([0, 40])
    found = gradients(lm, windows, 2 * LENGTH, 0, starts=starts)
    model, step = untouched(lm.model), 1e-5
    draw = np.random.default_rng(0)
    largest = 0
    for side, got in (("keys", found.key_gradients), ("values", found.value_gradients)):
        for k, layer in enumerate(lm.coded_layers):
            w, head, position, channel = draw.integers([0, 0, 0, 0], [2, 2, LENGTH - 1, 16])
            place = (windows[w], side, layer, head, position, channel)
            stands = starts[w] + torch.arange(LENGTH)
            expected = (loss(model, *place, step, stands) - loss(model, *place, -step, stands)) / (2 * step)
            gradient = got[k][head, w * LENGTH + position, channel].item()
            assert gradient == pytest.approx(expected, rel=1e-5, abs=1e-7)
            largest = max(largest, abs(gradient))
    assert largest > 1e-2


@pytest.fixture(scope="module")
def windows():
    return random_ids(30, batch=3, seed=8).numpy()


def test_they_are_of_the_tokens_that_were_sampled(tiny, windows):
    all_of_them = gradients(tiny, windows, 90, 0)
    drawn = gradients(tiny, windows, 20, 5, leave_out=4)
    places = [i for i in np.random.default_rng(5).permutation(90) if i % 30 >= 4][:20]
    for name in ("keys", "values", "key_gradients", "value_gradients"):
        for got, whole in zip(getattr(drawn, name), getattr(all_of_them, name), strict=True):
            torch.testing.assert_close(got, whole[:, sorted(places)], rtol=1e-5, atol=1e-7)


def test_nothing_is_scored_after_the_last_token(tiny, windows):
    found = gradients(tiny, windows, 90, 0)
    for layer in (*found.key_gradients, *found.value_gradients):
        assert layer[:, 29::30].abs().max() == 0
        assert layer[:, 27::30].abs().max() > 0


def test_samples_and_weights_stay_as_they_are(windows):
    tiny = tiny_lm()
    for weight in list(tiny.model.parameters())[::2]:
        weight.requires_grad_(not weight.requires_grad)
    asked = [weight.requires_grad for weight in tiny.model.parameters()]
    samples = capture(tiny, windows, 40, 1, moments=True)
    found = capture_gradients(tiny, samples, windows, 40, 1)
    assert [weight.requires_grad for weight in tiny.model.parameters()] == asked
    assert all(weight.grad is None for weight in tiny.model.parameters())
    for field in fields(samples):
        if not field.name.endswith("gradients"):
            assert getattr(found, field.name) is getattr(samples, field.name)


def test_progress_counts_windows_of_gradients(tiny, windows):
    told = []
    samples = capture(tiny, windows, 5, 0)
    capture_gradients(tiny, samples, windows, 5, 0, lambda done, total: told.append((done, total)))
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
