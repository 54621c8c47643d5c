"""Batches: left padding, forks, reorderings, changes of the batch."""

import itertools

import pytest
import torch
from models import gap, random_ids, stepwise, untouched
from transformers import DynamicCache

from pqkv.config import CacheConfig
from pqkv.errors import CacheError, OutOfPages
from pqkv.lm import PQKVCache, attach
from pqkv.lm.step import cache_argument

SMALL = CacheConfig(page_size=8, residual=16, sink_tokens=2)
LENGTHS = (33, 20, 41)


def cache_of(lm, books, config=SMALL):
    attach(lm.model)
    return PQKVCache(lm.model.config, books, config)


def left_padded(lengths, new):
    """Rows of random tokens of these lengths, with `new` more each, and the mask that hides the padding."""
    longest = max(lengths)
    rows = [random_ids(n + new, seed=n) for n in lengths]
    ids = torch.cat([torch.nn.functional.pad(row, (longest - row.shape[1] + new, 0)) for row in rows])
    mask = torch.cat([torch.nn.functional.pad(torch.ones_like(row), (longest - row.shape[1] + new, 0)) for row in rows])
    return rows, ids, mask


def padded_steps(model, cache, ids, mask, prompt, size=1):
    """Prefill of `prompt` columns, then `size` tokens a step; positions count real tokens only, as generate does."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    starts = [0, *range(prompt, ids.shape[1], size), ids.shape[1]]
    with torch.inference_mode():
        return torch.cat(
            [
                model(
                    ids[:, a:b],
                    attention_mask=mask[:, :b],
                    position_ids=positions[:, a:b],
                    **cache_argument(model, cache),
                ).logits
                for a, b in itertools.pairwise(starts)
            ],
            1,
        )


@pytest.mark.parametrize("coded", [True, False], ids=["coded", "exact"])
@pytest.mark.parametrize("size", [1, 5])
def test_every_row_of_a_left_padded_batch_equals_itself_alone_past_flushes(tiny, books, coded, size):
    rows, ids, mask = left_padded(LENGTHS, new=30)
    cache = cache_of(tiny, books if coded else None)
    logits = padded_steps(tiny.model, cache, ids, mask, max(LENGTHS), size)
    assert cache.kv.layers[0].lengths == [n + 30 for n in LENGTHS]
    for b, (row, n) in enumerate(zip(rows, LENGTHS, strict=True)):
        alone = cache_of(tiny, books if coded else None)
        expected = torch.cat(
            [stepwise(tiny.model, row[:, :n], alone, n), stepwise(tiny.model, row[:, n:], alone, size)], 1
        )
        assert gap(logits[b, -n - 30 :], expected[0]) <= 1e-9


def test_a_left_padded_batch_without_codes_equals_dynamic_cache(tiny, books):
    _, ids, mask = left_padded(LENGTHS, new=10)
    plain = untouched(tiny.model)
    expected = padded_steps(plain, DynamicCache(config=plain.config), ids, mask, max(LENGTHS))
    got = padded_steps(tiny.model, cache_of(tiny, books, CacheConfig()), ids, mask, max(LENGTHS))
    assert gap(got[mask.bool()], expected[mask.bool()]) <= 1e-9


def test_generate_pads_and_continues_each_row_as_if_alone(tiny, books):
    rows, ids, mask = left_padded(LENGTHS, new=0)
    together = tiny.model.generate(
        ids,
        attention_mask=mask,
        **cache_argument(tiny.model, cache_of(tiny, books)),
        max_new_tokens=30,
        do_sample=False,
    )
    for b, row in enumerate(rows):
        alone = tiny.model.generate(
            row, attention_mask=torch.ones_like(row), **cache_argument(tiny.model, cache_of(tiny, books)),
            max_new_tokens=30,
            do_sample=False,
        )  # fmt: skip
        assert torch.equal(together[b, -30:], alone[0, -30:])


@pytest.mark.parametrize("paged", [True, False], ids=["paged", "contiguous"])
def test_reset_makes_a_cache_new_for_any_batch(tiny, books, paged):
    config = SMALL.model_copy(update={"paged": paged})
    cache = cache_of(tiny, books, config)
    stepwise(tiny.model, random_ids(50, batch=2), cache, 10)
    pool = cache.kv.pool
    cache.reset()
    assert (cache.get_seq_length(), pool.used) == (0, 0)
    ids = random_ids(60, batch=3, seed=7)
    assert torch.equal(
        stepwise(tiny.model, ids, cache, 10), stepwise(tiny.model, ids, cache_of(tiny, books, config), 10)
    )


def test_reset_serves_a_model_with_sliding_layers_again():
    from models import tiny_lm

    lm = tiny_lm("qwen2", use_sliding_window=True, sliding_window=24, max_window_layers=1)
    cache = cache_of(lm, None)
    stepwise(lm.model, random_ids(50, batch=2), cache, 10)
    cache.reset()
    ids = random_ids(60, seed=7)
    assert torch.equal(stepwise(lm.model, ids, cache, 10), stepwise(lm.model, ids, cache_of(lm, None), 10))


@pytest.mark.parametrize("coded", [True, False], ids=["coded", "exact"])
def test_a_fork_continues_from_its_sequence_and_leaves_it_alone(tiny, books, coded):
    stem, tails = random_ids(45, batch=2), random_ids(30, batch=3, seed=3)
    cache = cache_of(tiny, books if coded else None)
    stepwise(tiny.model, stem, cache, 45)
    used = cache.kv.pool.used
    assert cache.fork(1) == 2
    assert cache.kv.pool.used == used  # nothing was copied
    logits = stepwise(tiny.model, tails, cache)
    for b, parent in enumerate([0, 1, 1]):
        alone = cache_of(tiny, books if coded else None)
        stepwise(tiny.model, stem[parent : parent + 1], alone, 45)
        assert gap(logits[b : b + 1], stepwise(tiny.model, tails[b : b + 1], alone)) <= 1e-9


CHANGES = {
    "reorder_cache": (lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0])), [2, 2, 0]),
    "batch_repeat_interleave": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "batch_select_indices": (lambda cache: cache.batch_select_indices(torch.tensor([2, 0])), [2, 0]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["paged", "contiguous", "exact", "sliding"])
def test_a_changed_batch_continues_from_the_sequences_it_was_made_of(tiny, books, change, kind):
    lm, own, config = tiny, books if kind != "exact" else None, SMALL.model_copy(update={"paged": kind != "contiguous"})
    if kind == "sliding":
        from models import tiny_lm

        lm, own = tiny_lm("qwen3", use_sliding_window=True, sliding_window=24, max_window_layers=1), None
    act, parents = CHANGES[change]
    _, ids, mask = left_padded(LENGTHS, new=0)
    tails = random_ids(20, batch=len(parents), seed=4)
    cache, expected = cache_of(lm, own, config), cache_of(lm, own, config)
    padded_steps(lm.model, cache, ids, mask, ids.shape[1])
    act(cache)
    # the same rows prefilled in the new order from the start
    whole, seen = torch.cat([ids[parents], tails], 1), torch.cat([mask[parents], torch.ones_like(tails)], 1)
    reference = padded_steps(lm.model, expected, whole, seen, ids.shape[1])[:, ids.shape[1] :]
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        got = [
            lm.model(
                whole[:, t : t + 1], attention_mask=seen[:, : t + 1], position_ids=positions[:, t : t + 1],
                **cache_argument(lm.model, cache),
            ).logits
            for t in range(ids.shape[1], whole.shape[1])
        ]  # fmt: skip
    assert gap(torch.cat(got, 1), reference) <= 1e-9


def test_another_batch_size_is_refused_and_the_cache_stays_usable(tiny, books):
    ids = random_ids(50)
    cache = cache_of(tiny, books)
    stepwise(tiny.model, ids[:, :40], cache, 40)
    with pytest.raises(CacheError, match=r"holds 1 sequences, the model brought 2.*reset"):
        stepwise(tiny.model, random_ids(3, batch=2), cache)
    whole = cache_of(tiny, books)
    stepwise(tiny.model, ids[:, :40], whole, 40)
    assert gap(stepwise(tiny.model, ids[:, 40:], cache), stepwise(tiny.model, ids[:, 40:], whole)) == 0


def test_a_step_that_ran_out_of_pages_can_be_taken_again(tiny, books):
    """After `OutOfPages` nothing has changed, the positions of the next step included."""
    config = SMALL.model_copy(update={"max_pages": 6})
    tails = random_ids(30, seed=3)
    cache = cache_of(tiny, books, config)
    stepwise(tiny.model, random_ids(33, batch=2), cache, 33)  # two pages each
    with pytest.raises(OutOfPages):
        stepwise(tiny.model, random_ids(40, batch=2), cache, 40)
    cache.batch_select_indices(torch.tensor([0]))
    alone = cache_of(tiny, books)
    stepwise(tiny.model, random_ids(33, batch=2)[:1], alone, 33)
    assert gap(stepwise(tiny.model, tails, cache), stepwise(tiny.model, tails, alone)) <= 1e-12
    assert cache.get_seq_length() == 63
