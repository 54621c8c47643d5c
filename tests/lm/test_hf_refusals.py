"""What a pqkv cache cannot serve is refused by name, before it can give a wrong answer."""

import pytest
import torch
from models import gap, random_ids, sampled_books, stepwise, tiny_lm, tiny_model, untouched

from pqkv.codec import CodebookSet
from pqkv.config import CacheConfig
from pqkv.errors import CacheError, ModelError
from pqkv.lm import PQKVCache, attach
from pqkv.lm.families import SUPPORTED_FAMILIES
from pqkv.lm.load import describe
from pqkv.lm.step import cache_argument

SMALL = CacheConfig(page_size=8, residual=16, sink_tokens=2)


def filled(lm, books, length=40):
    attach(lm.model)
    cache = PQKVCache(lm.model.config, books, SMALL)
    stepwise(lm.model, random_ids(length), cache, length)
    return cache


def forward(lm, cache, ids, mask):
    with torch.inference_mode():
        return lm.model(ids, attention_mask=mask, **cache_argument(lm.model, cache))


@pytest.mark.parametrize("hidden", [[5], [38, 39], [0, 20]], ids=["hole", "right padding", "padding and hole"])
def test_a_mask_with_a_hole_is_refused(tiny, books, hidden):
    attach(tiny.model)
    mask = torch.ones(1, 40, dtype=torch.long)
    mask[0, hidden] = 0
    with pytest.raises(CacheError, match="left padding"):
        forward(tiny, PQKVCache(tiny.model.config, books, SMALL), random_ids(40), mask)


def test_a_mask_that_later_hides_what_was_cached_is_refused(tiny, books):
    cache = filled(tiny, books)
    mask = torch.ones(1, 41, dtype=torch.long)
    mask[0, :3] = 0
    with pytest.raises(CacheError, match="cached as real"):
        forward(tiny, cache, random_ids(1), mask)


def test_padding_that_is_forgotten_in_a_later_step_is_refused(tiny, books):
    attach(tiny.model)
    cache = PQKVCache(tiny.model.config, books, SMALL)
    mask = torch.ones(1, 40, dtype=torch.long)
    mask[0, :3] = 0
    forward(tiny, cache, random_ids(40), mask)
    with pytest.raises(CacheError, match="same padding"):
        forward(tiny, cache, random_ids(1), None)


@pytest.mark.parametrize("past", [0, 40])
@pytest.mark.parametrize("additive", [False, True], ids=["bool", "additive"])
def test_a_mask_whose_inner_rows_are_not_causal_is_refused(tiny, books, past, additive):
    """The newest row alone looks causal here: a row before it sees ahead, or does not see its past."""
    for row, column in ((0, past + 1), (2, past + 1)):
        cache = filled(tiny, books, past) if past else PQKVCache(tiny.model.config, books, SMALL)
        attach(tiny.model)
        mask = torch.ones(4, past + 4, dtype=torch.bool).tril(past)
        mask[row, column] = not mask[row, column]
        full = mask[None, None]
        if additive:
            full = torch.zeros(full.shape, dtype=tiny.dtype).masked_fill(~full, torch.finfo(tiny.dtype).min)
        with pytest.raises(CacheError, match="left padding"):
            forward(tiny, cache, random_ids(4), full)


@pytest.mark.parametrize("additive", [False, True], ids=["bool", "additive"])
def test_a_causal_mask_in_four_dimensions_is_served(tiny, books, additive):
    cache, plain = filled(tiny, books), filled(tiny, books)
    mask = torch.ones(4, 44, dtype=torch.bool).tril(40)[None, None]
    if additive:
        mask = torch.zeros(mask.shape, dtype=tiny.dtype).masked_fill(~mask, torch.finfo(tiny.dtype).min)
    ids = random_ids(4, seed=2)
    assert gap(forward(tiny, cache, ids, mask).logits, stepwise(tiny.model, ids, plain, 4)) == 0


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_model_without_attach_is_told_to_attach_and_can_go_on_after_it(tiny, books, implementation):
    ids = random_ids(40)
    model = untouched(tiny.model)
    model.set_attn_implementation(implementation)
    cache = PQKVCache(model.config, books, SMALL)
    with pytest.raises(CacheError, match=r"pqkv\.lm\.attach"):
        stepwise(model, ids, cache, 20)
    attach(model)
    attach(tiny.model)
    expected = stepwise(tiny.model, ids, PQKVCache(model.config, books, SMALL), 20)
    assert gap(stepwise(model, ids, cache, 20), expected) == 0


def test_a_model_of_sliding_windows_only_has_nothing_to_code(books):
    model = tiny_model("mistral", sliding_window=24)
    with pytest.raises(ModelError, match="none of the model's 3 layers has full attention"):
        PQKVCache(model.config, books)


@pytest.mark.parametrize("family", ["gpt2", "olmo", "phi"])
def test_an_unsupported_family_is_refused_with_the_list(family):
    shapes = {"n_embd": 64, "n_layer": 1, "n_head": 4} if family == "gpt2" else {"num_hidden_layers": 1}
    model = tiny_model(family, **shapes)
    for refuse in (lambda: attach(model), lambda: describe("other", model, None)):
        with pytest.raises(ModelError) as caught:
            refuse()
        assert f"'{family}'" in str(caught.value)
        assert str(caught.value).endswith("supported: " + ", ".join(SUPPORTED_FAMILIES))
    assert model.config._attn_implementation != "pqkv"


def test_codebooks_for_another_number_of_layers_are_refused(tiny, books):
    attach(tiny.model)
    two = CodebookSet(books.keys[:2], books.values[:2])
    with pytest.raises(CacheError, match="codebooks for 2 layers, but the model has 3"):
        stepwise(tiny.model, random_ids(3), PQKVCache(tiny.model.config, two, SMALL))


def test_codebooks_of_another_head_dim_are_refused(tiny):
    other = tiny_lm(head_dim=8)
    attach(tiny.model)
    with pytest.raises(CacheError, match="head"):
        stepwise(tiny.model, random_ids(3), PQKVCache(tiny.model.config, sampled_books(other, 4), SMALL))


def test_keys_that_are_not_finite_are_refused_when_they_would_be_coded(tiny, books):
    model = untouched(tiny.model)
    attach(model)
    with torch.no_grad():
        model.model.layers[1].self_attn.k_proj.weight[0, 0] = float("nan")
    with pytest.raises(CacheError, match="NaN or infinite"):
        stepwise(model, random_ids(40), PQKVCache(model.config, books, SMALL), 40)
