"""An exported cache, read back in NumPy alone, attends as the cache itself does."""

import numpy as np
import pytest
import torch
from naive import DIM, GROUP, HEADS, make_books, served_books
from safetensors.torch import save_file

from pqkv.cache import Geometry, KVCache
from pqkv.cache.exported import save_export
from pqkv.cache.plain import load_export
from pqkv.codec import Codebook, CodebookSet
from pqkv.config import CacheConfig
from pqkv.errors import CacheError

LAYERS, SCALE = 2, 0.4


def rotated_books():
    """Codes of OPQ, keys with weights, and centroids that all heads and subspaces of the values share."""
    generator = torch.Generator().manual_seed(5)
    rotation = torch.linalg.qr(torch.randn(HEADS, DIM, DIM, generator=generator)).Q.contiguous()
    weights = torch.rand(HEADS, DIM, generator=generator) + 0.5
    keys = Codebook(torch.randn(HEADS, 4, 8, 2, generator=generator), weights=weights, rotation=rotation)
    values = Codebook(torch.randn(8, 2, generator=generator).expand(HEADS, 4, 8, 2))
    return CodebookSet((keys,) * LAYERS, (values,) * LAYERS)


CODES = {
    "channels": lambda: make_books(LAYERS),
    "shared by heads": lambda: make_books(LAYERS, heads=1),
    "served": lambda: served_books(LAYERS),
    "rotated": rotated_books,
    "exact": lambda: None,
}


def filled(books, lengths, *, padding=(0, 5), **config):
    """A cache of two sequences, `lengths` tokens and then one more, with what it gave for the last one's query."""
    generator = torch.Generator().manual_seed(1)
    settings = CacheConfig.parse({"page_size": 4, "residual": 8, "sink_tokens": 2, **config})
    cache = KVCache(settings, Geometry(2, HEADS, DIM, torch.float64, torch.device("cpu")), LAYERS, books)

    def tokens(count, heads=HEADS):
        return torch.randn(2, heads, count, DIM, dtype=torch.float64, generator=generator)

    query, out = tokens(1, HEADS * GROUP).transpose(1, 2), []
    for layer in cache.layers:
        layer.append(tokens(lengths), tokens(lengths), padding)
        out.append(layer.attend(query, tokens(1), tokens(1), scale=SCALE)[:, 0])
    return cache, query[:, 0].numpy(), [one.numpy() for one in out]


@pytest.mark.parametrize("layouts", [("transposed", "row"), ("row", "transposed")])
@pytest.mark.parametrize("codes", CODES)
def test_a_round_trip_attends_as_the_cache_does(codes, layouts, tmp_path):
    cache, query, out = filled(CODES[codes](), 31, key_layout=layouts[0], value_layout=layouts[1])
    assert min(layer.coded[0] for layer in cache.layers) > 0 or codes == "exact"
    save_export(tmp_path / "cache.safetensors", cache)
    plain = load_export(tmp_path / "cache.safetensors")
    for i in range(LAYERS):
        assert np.abs(plain.attend(i, query, SCALE) - out[i]).max() < (1e-12 if codes == "exact" else 2e-6)


@pytest.mark.parametrize("coded", [True, False])
def test_pages_are_found_as_flashinfer_finds_them(coded, tmp_path):
    cache, _, _ = filled(make_books(LAYERS) if coded else None, 31)
    cache.fork(1)
    save_export(tmp_path / "cache.safetensors", cache)
    found = load_export(tmp_path / "cache.safetensors").tensors
    lengths, page_size = cache.layers[0].lengths, cache.config.page_size
    pages = np.diff(found["kv_indptr"])
    in_pages = (pages - 1) * page_size + found["last_page_len"]
    assert lengths == [32, 27, 27]
    assert (in_pages + found["sink_len"] + found["residual_len"]).tolist() == lengths
    assert ((found["last_page_len"] >= 1) & (found["last_page_len"] <= page_size)).all()
    second, third = (found["kv_indices"][found["kv_indptr"][b] : found["kv_indptr"][b + 1]] for b in (1, 2))
    assert second.tolist() == third.tolist(), "pages that sequences share are there once"
    assert len(found["layers.0.keys.pages"]) == len(set(found["kv_indices"].tolist())) == max(found["kv_indices"]) + 1


def test_a_sequence_without_pages_has_none(tmp_path):
    cache, query, out = filled(make_books(LAYERS), 12, padding=(0, 11))
    save_export(tmp_path / "cache.safetensors", cache)
    plain = load_export(tmp_path / "cache.safetensors")
    assert plain.tensors["kv_indptr"].tolist()[1:] == [1, 1]
    assert plain.tensors["last_page_len"].tolist() == [4, 0]
    assert np.abs(plain.attend(0, query, SCALE) - out[0]).max() < 2e-6


def test_memory_that_holds_nothing_is_not_written(tmp_path):
    cache, _, _ = filled(make_books(LAYERS), 31)
    save_export(tmp_path / "cache.safetensors", cache)
    found = load_export(tmp_path / "cache.safetensors").tensors
    assert all(np.isfinite(tensor).all() for tensor in found.values())


@pytest.mark.parametrize(
    ("config", "cause"),
    [({"paged": False}, "a contiguous cache has no pages"), ({"window": 16}, "a window or keep has dropped tokens")],
)
def test_what_such_pages_cannot_hold_is_refused(config, cause, tmp_path):
    cache, _, _ = filled(make_books(LAYERS), 31, **config)
    with pytest.raises(CacheError, match=cause):
        save_export(tmp_path / "cache.safetensors", cache)
    assert not list(tmp_path.iterdir())


def test_other_files_are_refused_by_name(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CacheError, match="no exported cache"):
        load_export(tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"nothing")
    with pytest.raises(CacheError, match="not a readable safetensors file"):
        load_export(tmp_path / "cut.safetensors")
