"""Writing on one cache: transformers' own `generate` is the reference; draws, ends and bytes have known results."""

from pathlib import Path

import pytest
import torch
from models import random_ids
from transformers import DynamicCache

from pqkv.config import CacheConfig, GenerateConfig
from pqkv.generation.decode import chosen, write
from pqkv.generation.session import Session, parting
from pqkv.lm import PQKVCache, attach
from pqkv.lm.step import cache_argument
from pqkv.lm.tokens import TokenForm
from pqkv.quality.cells import Coding
from pqkv.record import load_records

RESULTS = Path(__file__).parents[2] / "results/generation"
SMALL = CacheConfig(page_size=8, residual=16)


@pytest.fixture(scope="module")
def lm(tiny):
    attach(tiny.model)
    return tiny


def coded(lm, books):
    return PQKVCache(lm.model.config, books, SMALL)


@pytest.mark.parametrize("kind", ["exact", "coded"])
def test_greedy_writing_is_what_generate_of_transformers_writes(lm, books, kind):
    ids = random_ids(40)
    make = (lambda: DynamicCache(config=lm.model.config)) if kind == "exact" else (lambda: coded(lm, books))
    expected = lm.model.generate(ids, max_new_tokens=32, do_sample=False, **cache_argument(lm.model, make()))
    heard = []
    found = write(lm, ids, make(), tokens=32, heard=heard.append)
    assert found.tokens == expected[0, 40:].tolist() == heard
    assert len(found.steps_ms) == 32


def test_texts_on_exact_and_coded_caches_part(lm, books):
    ids = random_ids(40)
    one, other = (write(lm, ids, make, tokens=32) for make in (DynamicCache(), coded(lm, books)))
    at = parting(one.tokens, other.tokens)
    assert at is not None, "or the test above shows nothing of codes"
    assert one.tokens[: at - 1] == other.tokens[: at - 1]
    assert other.attended.coded_columns > 0 == one.attended.columns


def test_an_end_is_the_last_token(lm):
    free = write(lm, random_ids(20), DynamicCache(), tokens=12).tokens
    end = free[5]
    found = write(lm, random_ids(20), DynamicCache(), tokens=12, ends={end}).tokens
    assert found == free[: free.index(end) + 1]


def test_draws_are_the_same_on_every_cache_and_others_with_another_seed(lm):
    ids = random_ids(20)
    pages = PQKVCache(lm.model.config, None, SMALL)
    drawn = [write(lm, ids, cache, tokens=24, temperature=1.5).tokens for cache in (DynamicCache(), pages)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != write(lm, ids, DynamicCache(), tokens=24, temperature=1.5, seed=1).tokens
    assert drawn[0] != write(lm, ids, DynamicCache(), tokens=24).tokens


def test_tokens_are_drawn_as_often_as_the_softmax_at_their_temperature_says():
    logits, draws = torch.tensor([[[1.0, 0.0, -1.0, 2.0]]]), torch.Generator().manual_seed(3)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[chosen(logits, 0.7, draws)] += 1
    expected = (logits[0, 0].double() / 0.7).softmax(-1) * 4000
    assert ((counts - expected).square() / expected).sum() < 16.3  # chi-squared, 3 degrees, 0.1%


def test_bytes_grow_as_tokens_are_cached(lm, books):
    found = write(lm, random_ids(40), DynamicCache(), tokens=32)
    assert [row["tokens"] for row in found.growth] == list(range(40, 73, 2))
    assert all(row["cache_bytes"] == 2 * 3 * 2 * 16 * 8 * row["tokens"] for row in found.growth)  # float64
    cache = coded(lm, books)
    last = write(lm, random_ids(40), cache, tokens=32).growth[-1]
    memory = cache.kv.memory()
    assert (last["cache_bytes"], last["allocated_bytes"]) == (memory.total, memory.allocated)


def test_where_texts_part():
    assert parting([1, 2, 3], [1, 2, 3]) is None
    assert parting([1, 2, 3], [1, 5, 3]) == 2
    assert parting([1, 2], [1, 2, 3]) == parting([1, 2, 3], [1, 2]) == 3


@pytest.mark.parametrize("mode", ["greedy", "drawn"])
def test_records_of_before_there_was_a_command_are_found(reference, mode):
    """A cell that does what was always done has the digest that it always had."""
    config = GenerateConfig.parse(
        {"tokens": 2000, "ignore_end": True, "bits": (4, 2), "temperature": 0.8 * (mode == "drawn")}
    )
    prompt = "The history of the book begins long before printing."
    of_two = {"4 bits": Coding(bits=4.06), "2 bits": Coding(bits=2.06)}
    session = Session(config, prompt, reference, torch.ones((1, 10), dtype=torch.long), TokenForm(), of_two)
    old = {one.config["cache"]: one.config for one in load_records(RESULTS) if one.config["mode"] == mode}
    assert set(old) == {"DynamicCache", "4 bits", "2 bits"}
    for name, coding in {"DynamicCache": None, **of_two}.items():
        model = {key: old[name][key] for key in ("model", "model_weights", "threads")}
        assert session.describe(name, coding) | model == old[name]
