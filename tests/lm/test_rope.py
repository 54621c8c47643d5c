"""Rotary embeddings whose factors follow the length: when steps are one forward, and which keys are which."""

import pytest
import torch
from models import dynamic_logits, gap, random_ids, stepwise, tiny_lm, untouched
from transformers import DynamicCache

from pqkv.errors import ConfigError
from pqkv.lm.rope import check_rope, forget_lengths, regime_conflict, rope_regime, rope_switch

SHORT = 32  # tokens with the factors of short sequences
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
ONE_SET = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": SHORT},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": SHORT,
    },
}


def of(kind):
    if kind == "longrope":
        more = {"original_max_position_embeddings": SHORT, "max_position_embeddings": 4 * SHORT}
        return tiny_lm("phi3", rope_parameters=dict(LONGROPE), **more)
    if kind == "dynamic":
        return tiny_lm(rope_parameters={"rope_type": "dynamic", "factor": 4.0}, max_position_embeddings=SHORT)
    return tiny_lm(rope_parameters=dict(ONE_SET[kind]), max_position_embeddings=4 * SHORT)


def steps_differ(lm, length, first):
    """Largest difference of logits between one forward and a first forward with single steps after it."""
    model, ids = untouched(lm.model), random_ids(length)
    cache = DynamicCache(config=model.config)
    taken = [stepwise(model, ids[:, :first], cache, first)]
    if first < length:
        taken.append(stepwise(model, ids[:, first:], cache))
    return gap(torch.cat(taken, 1), dynamic_logits(lm.model, ids))


def forward(lm, ids):
    """transformers alone, with whatever an earlier forward left in the model."""
    with torch.inference_mode():
        return lm.model(ids).logits


# (tokens, of them in the first forward): within the short side, across the switch, all past it
RUNS = [(SHORT, 1), (SHORT + 1, 1), (2 * SHORT, SHORT), (2 * SHORT, SHORT + 1), (2 * SHORT, 2 * SHORT)]


@pytest.mark.parametrize("kind", ["longrope", "dynamic", *ONE_SET])
@pytest.mark.parametrize(("length", "first"), RUNS)
def test_steps_are_refused_exactly_where_they_are_not_one_forward(kind, length, first):
    lm = of(kind)
    if steps_differ(lm, length, first) <= 1e-9:
        check_rope(lm, length, first=first)
    else:
        with pytest.raises(ConfigError) as caught:
            check_rope(lm, length, first=first)
        text = str(caught.value)
        assert "\n" not in text
        for word in ("rope", f"'{kind}'", str(length), f"--context to {SHORT}", "--mode exact-schedule"):
            assert word in text


@pytest.mark.parametrize("kind", ONE_SET)
def test_factors_of_other_types_do_not_depend_on_the_length(kind):
    lm = of(kind)
    assert rope_switch(lm.model.config) is None
    assert rope_regime(lm.model.config, 4 * SHORT) is None
    assert regime_conflict(lm, 8, 4 * SHORT) is None


def test_one_forward_is_allowed_at_every_length():
    for kind in ("longrope", "dynamic"):
        check_rope(of(kind), 4 * SHORT)


@pytest.mark.parametrize(
    ("kind", "length", "said"),
    [
        ("longrope", SHORT, f"longrope, short factors (<= {SHORT})"),
        ("longrope", SHORT + 1, f"longrope, long factors (> {SHORT})"),
        ("dynamic", SHORT, f"dynamic, plain factors (<= {SHORT})"),
        ("dynamic", 2 * SHORT, f"dynamic, factors of {2 * SHORT} tokens"),
    ],
)
def test_a_length_is_named_by_the_factors_it_uses(kind, length, said):
    assert rope_regime(of(kind).model.config, length) == said


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@pytest.mark.parametrize(("calibrated", "length"), [(16, SHORT), (16, SHORT + 1), (40, 64), (64, 64), (64, 16)])
def test_codebooks_are_foreign_exactly_where_the_same_token_has_another_key(kind, calibrated, length):
    lm = of(kind)

    def keys(count):
        cache, model = DynamicCache(config=lm.model.config), untouched(lm.model)
        stepwise(model, random_ids(80)[:, :count], cache, count)
        return cache.layers[0].keys[:, :, : min(calibrated, length)]

    same = gap(keys(calibrated), keys(length)) <= 1e-9
    told = regime_conflict(lm, calibrated, length)
    assert (told is None) is same
    if told is not None:
        assert str(calibrated) in told
        assert f"--context {length}" in told


def test_equal_factors_on_both_sides_are_no_switch():
    more = {"original_max_position_embeddings": SHORT, "max_position_embeddings": 4 * SHORT}
    lm = tiny_lm("phi3", rope_parameters={**LONGROPE, "long_factor": LONGROPE["short_factor"]}, **more)
    assert steps_differ(lm, 2 * SHORT, 1) <= 1e-9
    assert rope_switch(lm.model.config) is None


def test_a_switch_past_the_last_position_is_none():
    more = {"original_max_position_embeddings": SHORT, "max_position_embeddings": SHORT}
    assert rope_switch(tiny_lm("phi3", rope_parameters=dict(LONGROPE), **more).model.config) is None


@pytest.mark.parametrize("length", [SHORT, 2 * SHORT])
def test_a_longer_forward_before_changes_nothing_once_it_is_forgotten(length):
    lm, ids = of("dynamic"), random_ids(length)
    expected = forward(lm, ids)
    forward(lm, random_ids(4 * SHORT))
    assert gap(forward(lm, ids), expected) > 1e-6  # transformers keeps the factors of the longest
    forget_lengths(lm.model)
    assert gap(forward(lm, ids), expected) <= 1e-9


def test_the_logits_of_a_model_do_not_depend_on_what_ran_before():
    lm, ids = of("dynamic"), random_ids(2 * SHORT)
    expected = lm.logits(ids)
    lm.logits(random_ids(4 * SHORT))
    assert gap(lm.logits(ids), expected) <= 1e-9


def test_longrope_forgets_by_itself():
    lm, ids = of("longrope"), random_ids(SHORT)
    expected = forward(lm, ids)
    forward(lm, random_ids(4 * SHORT))
    assert gap(forward(lm, ids), expected) <= 1e-9


def test_a_rope_for_each_layer_type_is_forgotten_too():
    """Gemma 3 keeps one set of factors for each type of its layers."""
    ropes = {"sliding_attention": {"rope_type": "default"}, "full_attention": {"rope_type": "dynamic", "factor": 4.0}}
    types = ["sliding_attention", "full_attention", "full_attention"]
    more = {"layer_types": types, "sliding_window": 24, "max_position_embeddings": SHORT}
    lm, ids = tiny_lm("gemma3_text", rope_parameters=ropes, **more), random_ids(2 * SHORT)
    expected = forward(lm, ids)
    forward(lm, random_ids(4 * SHORT))
    assert gap(forward(lm, ids), expected) > 1e-6
    forget_lengths(lm.model)
    assert gap(forward(lm, ids), expected) <= 1e-9
