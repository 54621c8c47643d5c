"""Models spread over devices: what one machine can show of it."""

import pytest
import torch
from models import gap, random_ids

from pqkv.cache import Geometry, KVCache
from pqkv.config import CacheConfig
from pqkv.errors import CacheError, ModelError
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.load import describe
from pqkv.lm.offload import input_device
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


MAPS = {
    "all on disk": {"": "disk"},
    "embedding on disk": {"model.embed_tokens": "disk", "model.layers": "cpu", "model.norm": "cpu", "lm_head": "cpu"},
    "a layer on disk": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "disk",
    },
}


@pytest.mark.parametrize("name", MAPS)
def test_weights_on_disk_are_the_same_model(tiny_folder, name):
    plain, offloaded = load_model(str(tiny_folder)), load_model(str(tiny_folder), device_map=MAPS[name])
    assert any(weight.is_meta for weight in offloaded.model.parameters())
    assert offloaded.identity() == plain.identity()
    assert offloaded.notes == ()
    assert input_device(offloaded.model) == torch.device("cpu")
    ids = random_ids(40)
    assert gap(offloaded.logits(ids), plain.logits(ids)) <= 1e-5


@pytest.mark.parametrize("name", MAPS)
def test_weights_on_disk_run_in_every_mode(tiny_folder, name):
    from models import sampled_books

    plain, offloaded = load_model(str(tiny_folder)), load_model(str(tiny_folder), device_map=MAPS[name])
    assert offloaded.device == torch.device("cpu")
    books, ids = sampled_books(plain), random_ids(60)
    small = CacheConfig(page_size=8, residual=16, sink_tokens=2)
    for mode in ("exact-schedule", "token", "chunk"):
        results = [run_coded(lm, ids, books, small, mode, chunk_size=24) for lm in (plain, offloaded)]
        assert gap(*results) <= 1e-5


@pytest.mark.parametrize("name", MAPS)
def test_a_cache_steps_on_weights_that_are_on_disk(tiny_folder, name):
    from models import sampled_books

    plain, offloaded = load_model(str(tiny_folder)), load_model(str(tiny_folder), device_map=MAPS[name])
    books, ids, results = sampled_books(plain), random_ids(60), []
    for lm in (plain, offloaded):
        attach(lm.model)
        cache = PQKVCache(lm.model.config, books, CacheConfig(page_size=8, residual=16, sink_tokens=2))
        results.append(torch.cat([lm.logits(ids[:, :50], cache), lm.logits(ids[:, 50:], cache)], 1))
        assert cache.kv.layers[0].coded[0] > 0
    assert gap(*results) <= 1e-5


def test_weights_that_hooks_keep_in_memory_are_the_same_model(tiny_folder):
    from accelerate import cpu_offload

    plain = load_model(str(tiny_folder))
    offloaded = describe("tiny", cpu_offload(load_model(str(tiny_folder)).model, torch.device("cpu")), None)
    assert all(weight.is_meta for weight in offloaded.model.parameters())
    assert offloaded.fingerprint == plain.fingerprint
    assert input_device(offloaded.model) == torch.device("cpu")
    assert gap(offloaded.logits(random_ids(9)), plain.logits(random_ids(9))) <= 1e-5


@pytest.mark.parametrize("where", [{"device_map": "meta"}, {"device": "meta"}])
def test_weights_without_numbers_are_refused(tiny_folder, where):
    with pytest.raises(ModelError) as caught:
        load_model(str(tiny_folder), **where)
    text = str(caught.value)
    assert "21 weights" in text
    assert "are on the meta device and hold no numbers (first: model.embed_tokens.weight)" in text
    assert "--device-map (cpu, auto)" in text
    assert "\n" not in text
