"""`generate` on a pqkv cache: greedy, beams, left padding, several turns."""

import pytest
import torch
from models import brute_coded, gap, random_ids, stepwise, untouched
from transformers import DynamicCache

from pqkv.config import CacheConfig
from pqkv.lm import PQKVCache, attach
from pqkv.lm.step import cache_argument

SMALL = CacheConfig(page_size=8, residual=16, sink_tokens=2)


def generate(model, cache, ids, new=24, **more):
    return model.generate(
        ids,
        **cache_argument(model, cache),
        max_new_tokens=new,
        do_sample=False,
        attention_mask=torch.ones_like(ids),
        **more,
    )


def coded(lm, books, config=SMALL):
    attach(lm.model)
    return PQKVCache(lm.model.config, books, config)


@pytest.mark.parametrize("more", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("paged", [True, False], ids=["paged", "contiguous"])
def test_with_nothing_coded_yet_generate_gives_the_tokens_of_dynamic_cache(tiny, books, more, paged):
    ids = random_ids(20, batch=2)
    plain = untouched(tiny.model)
    expected = generate(plain, DynamicCache(config=plain.config), ids, **more)
    cache = coded(tiny, books, CacheConfig(paged=paged))
    assert torch.equal(generate(tiny.model, cache, ids, **more), expected)
    assert cache.get_seq_length() == 43  # the last token was never fed
    assert len(set(expected[0, 20:].tolist())) > 5  # not one token over and over


def test_beams_on_a_paged_exact_cache_give_the_tokens_of_dynamic_cache(tiny):
    """Beams diverge in partly filled pages, so every reordering goes through copy on write."""
    ids = random_ids(21, batch=2)
    plain = untouched(tiny.model)
    expected = generate(plain, DynamicCache(config=plain.config), ids, num_beams=3)
    cache = coded(tiny, None)
    assert torch.equal(generate(tiny.model, cache, ids, num_beams=3), expected)
    assert cache.kv.pool.stats().shared > 0


def test_greedy_past_several_flushes_follows_the_brute_force(tiny, books):
    ids = random_ids(30)
    cache = coded(tiny, books)
    tokens = generate(tiny.model, cache, ids, new=60)
    assert cache.kv.pool.used == 9  # (89 - 2 - 16 + 8) // 8
    # the first step is exact whatever its length, so the brute force takes the prompt in one chunk
    config = cache.cache_config
    logits = torch.cat(
        [
            brute_coded(tiny, tokens[:, :30], books, config, size=30),
            _continued(tiny, books, config, tokens[:, :30], tokens[:, 30:]),
        ],
        1,
    )
    assert torch.equal(logits[:, 29:-1].argmax(-1), tokens[:, 30:])
    plain = untouched(tiny.model)
    assert not torch.equal(tokens, generate(plain, DynamicCache(config=plain.config), ids, new=60))


def _continued(lm, books, config, prompt, rest):
    from models import brute_cache

    cache, model = brute_cache(books, config), untouched(lm.model)
    stepwise(model, prompt, cache, prompt.shape[1])
    return stepwise(model, rest, cache)


def test_beams_past_several_flushes_score_as_each_beam_alone(tiny, books):
    """A reordering that mixed up pages, residuals or sinks would give a beam another sequence's past."""
    ids = random_ids(30)
    out = generate(
        tiny.model, coded(tiny, books), ids, new=40, num_beams=3, num_return_sequences=3, return_dict_in_generate=True,
        output_scores=True, length_penalty=0.0,
    )  # fmt: skip
    for tokens, score in zip(out.sequences, out.sequences_scores, strict=True):
        cache = coded(tiny, books)
        logits = torch.cat(
            [stepwise(tiny.model, tokens[None, :30], cache, 30), stepwise(tiny.model, tokens[None, 30:], cache)], 1
        )
        log_p = logits[:, 29:-1].log_softmax(-1).gather(-1, tokens[None, 30:, None]).sum()
        assert abs(float(log_p - score)) <= 1e-4  # transformers adds scores in float32
    assert len({tuple(tokens.tolist()) for tokens in out.sequences}) == 3


def test_a_second_turn_continues_on_the_same_cache(tiny, books):
    cache = coded(tiny, books)
    first = generate(tiny.model, cache, random_ids(30), new=20)
    longer = torch.cat([first, random_ids(25, seed=5)], 1)
    second = generate(tiny.model, cache, longer, new=10)
    again = coded(tiny, books)
    pieces = [longer[:, :30], *longer[:, 30:49].split(1, 1), longer[:, 49:], *second[:, 75:-1].split(1, 1)]
    logits = [stepwise(tiny.model, piece, again, piece.shape[1])[:, -1] for piece in pieces][20:]
    assert torch.equal(torch.stack(logits, 1).argmax(-1), second[:, 75:])


def test_a_forward_that_keeps_gradients_can_be_cached(tiny, books):
    """transformers' own cache takes it, so a missing no_grad must not end in an error out of the encoder."""
    ids = random_ids(60)
    cache, still = coded(tiny, books), coded(tiny, books)
    logits = [
        tiny.model(piece, **cache_argument(tiny.model, cache)).logits.detach() for piece in ids.split([40, 10, 10], 1)
    ]
    expected = torch.cat(
        [stepwise(tiny.model, ids[:, :40], still, 40), stepwise(tiny.model, ids[:, 40:], still, 10)], 1
    )
    assert gap(torch.cat(logits, 1), expected) <= 1e-12
    assert not any(buffer.requires_grad for layer in cache.kv.layers for buffer in (*layer._residual, *layer._sinks))


@pytest.mark.parametrize(("paged", "kind"), [(True, "coded"), (False, "coded"), (True, "exact")])
def test_a_cache_filled_in_inference_mode_serves_steps_outside_of_it(tiny, books, paged, kind):
    """torch forbids changing in place what was made in that mode, and `generate` is not in it."""
    ids, own = random_ids(40), books if kind == "coded" else None
    cache, plain = (coded(tiny, own, SMALL.model_copy(update={"paged": paged})) for _ in range(2))
    with torch.inference_mode():
        tiny.model(ids[:, :30], **cache_argument(tiny.model, cache))
        tiny.model(ids[:, 30:39], **cache_argument(tiny.model, cache))
    with torch.no_grad():
        tiny.model(ids[:, :30], **cache_argument(tiny.model, plain))
        tiny.model(ids[:, 30:39], **cache_argument(tiny.model, plain))
    assert torch.equal(generate(tiny.model, cache, ids, new=40), generate(tiny.model, plain, ids, new=40))
