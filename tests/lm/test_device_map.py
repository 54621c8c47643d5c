"""Models spread over devices: what one machine can show of it."""

import pytest
import torch
from models import gap, random_ids

from pqkv.cache import Geometry, KVCache
from pqkv.config import CacheConfig
from pqkv.errors import CacheError, ModelError
from pqkv.lm import load_model
from pqkv.quality.modes import run_coded


def test_a_mapped_model_gives_what_the_plain_one_gives(tiny_folder):
    from models import sampled_books

    plain, mapped = load_model(str(tiny_folder)), load_model(str(tiny_folder), device_map="auto")
    assert mapped.identity() == plain.identity()
    ids, books = random_ids(300), sampled_books(plain)
    for mode in ("exact-schedule", "token"):
        results = [run_coded(lm, ids, books, CacheConfig(), mode) for lm in (plain, mapped)]
        assert gap(*results) <= 1e-5


def test_without_accelerate_the_package_is_named(tiny_folder, monkeypatch):
    monkeypatch.setattr("pqkv.lm.load.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the accelerate package"):
        load_model(str(tiny_folder), device_map="auto")


def test_a_map_that_is_none_is_one_line(tiny_folder):
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(str(tiny_folder), device_map="nonsense")


@pytest.mark.parametrize("coded", [True, False])
def test_a_layer_goes_where_its_keys_come_from_while_it_is_empty(coded, tiny, books):
    cpu, meta = torch.device("cpu"), torch.device("meta")
    cache = KVCache(
        CacheConfig(backend="reference"), Geometry(1, 2, 16, torch.float64, cpu), 3, books if coded else None
    )
    first = cache.layers[0]
    assert cache.place(0, cpu) is first
    moved = cache.place(1, meta)
    assert moved is cache.layers[1]
    buffers = moved._residual if coded else moved._pages
    assert {buffer.device for buffer in buffers} == {meta}
    keys = torch.randn(1, 2, 3, 16, dtype=torch.float64)
    first.append(keys, keys)
    with pytest.raises(CacheError, match="layer 0 holds tokens on cpu"):
        cache.place(0, meta)
