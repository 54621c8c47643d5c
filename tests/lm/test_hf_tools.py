"""What transformers builds on `generate` and `forward`: on a coded cache each gives the tokens of our own loop."""

import copy

import pytest
import torch
from models import sampled_books
from transformers import pipeline

from pqkv.config import CacheConfig
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.step import cache_argument

SMALL = CacheConfig(page_size=16, residual=32)
NEW = 24


@pytest.fixture(scope="module")
def lm(tiny_folder):
    """A random model with a tokenizer, whose codes give other tokens than exact vectors."""
    found = load_model(str(tiny_folder), dtype="float64")
    attach(found.model)
    return found


@pytest.fixture(scope="module")
def books(lm):
    return sampled_books(lm, 4, 4)


def cache(lm, books):
    return PQKVCache(lm.model.config, books, SMALL)


def own_loop(lm, books, ids):
    """Greedy tokens behind ids (1, T), one forward a token."""
    held, taken = cache(lm, books), []
    logits = lm.logits(ids, held)
    for _ in range(NEW):
        taken.append(logits[:, -1].argmax(-1, keepdim=True))
        logits = lm.logits(taken[-1], held)
    return torch.cat([ids, *taken], 1)


@pytest.fixture(scope="module")
def ids(lm):
    return torch.tensor([lm.encode("def add(a, b):\n    return a + b\n\n\n" * 4)])


@pytest.fixture(scope="module")
def expected(lm, books, ids):
    found = own_loop(lm, books, ids)
    assert not torch.equal(found, own_loop(lm, None, ids))
    return found


def generate(lm, ids, **more):
    return lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, pad_token_id=0, **more
    )


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")
def test_generate_takes_the_cache_under_its_older_and_its_newer_name(lm, books, ids, expected):
    for name in {"past_key_values", *cache_argument(lm.model, None)}:
        assert torch.equal(generate(lm, ids, **{name: cache(lm, books)}), expected)


def test_cache_implementation_knows_transformers_own_names_only_and_says_so(lm, ids):
    with pytest.raises(ValueError, match=r"Invalid `cache_implementation` \(pqkv\)"):
        generate(lm, ids, cache_implementation="pqkv")


def test_assisted_decoding_by_prompt_lookup(lm, books, ids, expected):
    more = cache_argument(lm.model, cache(lm, books))
    assert torch.equal(generate(lm, ids, **more, prompt_lookup_num_tokens=3), expected)


def own_assisted(lm, books, helper, ids, ahead):
    """Greedy tokens, `ahead` of them proposed by `helper` on exact vectors and taken back where they are wrong."""
    held, tokens, end = cache(lm, books), ids, ids.shape[1] + NEW
    while tokens.shape[1] < end:
        proposed = tokens
        for _ in range(min(ahead, end - tokens.shape[1] - 1)):
            with torch.inference_mode():
                proposed = torch.cat([proposed, helper(proposed).logits[:, -1:].argmax(-1)], 1)
        count = proposed.shape[1] - tokens.shape[1]
        greedy = lm.logits(proposed[:, held.get_seq_length() :], held)[:, -count - 1 :].argmax(-1)
        right = int((greedy[0, :count] == proposed[0, tokens.shape[1] :]).cumprod(0).sum())
        held.crop(right - count)
        tokens = torch.cat([tokens, greedy[:, : right + 1]], 1)
    return tokens, held


def test_assisted_decoding_by_another_model(lm, books, ids):
    """What is proposed in the first step is attended to exactly with the prompt, so the tokens are not `expected`."""
    helper = copy.deepcopy(lm.model)
    helper.generation_config.update(
        num_assistant_tokens=3, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    held = cache(lm, books)
    found = generate(lm, ids, **cache_argument(lm.model, held), assistant_model=helper)
    own, alone = own_assisted(lm, books, helper, ids, 3)
    assert torch.equal(found, own)
    assert not torch.equal(found, own_assisted(lm, None, helper, ids, 3)[0])
    assert held.kv.layers[0].coded == alone.kv.layers[0].coded == [48]  # a page was sealed on the way


def test_pipeline(lm, books, ids, expected):
    generator = pipeline("text-generation", model=lm.model, tokenizer=lm.tokenizer)
    text = lm.tokenizer.decode(ids[0])
    (found,) = generator(
        text, return_tensors=True, max_new_tokens=NEW, do_sample=False, **cache_argument(lm.model, cache(lm, books))
    )
    assert found["generated_token_ids"] == expected[0].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.ci), "inductor"])
def test_a_compiled_forward(lm, books, ids, expected, backend):
    """Pages and kernels stay as they are; the graph is cut around them."""
    import torch._dynamo

    torch._dynamo.reset()
    compiled, held, taken = torch.compile(lm.model.forward, backend=backend), cache(lm, books), []
    with torch.inference_mode():
        logits = compiled(input_ids=ids, **cache_argument(lm.model, held)).logits
        for _ in range(3):
            taken.append(logits[:, -1].argmax(-1, keepdim=True))
            logits = compiled(input_ids=taken[-1], **cache_argument(lm.model, held)).logits
    torch._dynamo.reset()
    assert torch.equal(torch.cat(taken, 1), expected[:, ids.shape[1] : ids.shape[1] + 3])
    assert held.attended.calls == 4 * len(held.coded_layers)
