"""Codebooks that rotate, through the real cache: the layer behind lives in the turned space."""

from dataclasses import replace

import pytest
import torch
from models import gap, random_ids, stepwise, tiny_lm

from pqkv.cache import Geometry, KVCache, footprint
from pqkv.codec import Codebook, CodebookSet
from pqkv.config import CacheConfig
from pqkv.lm import PQKVCache, attach
from pqkv.quality.control import shuffled
from pqkv.quality.modes import run_coded, run_exact

CONFIG = CacheConfig(page_size=8, residual=16, sink_tokens=3)


def rotated(books, *, sides=("keys", "values"), heads=None):
    """The same centroids under random rotations, one a head."""
    generator = torch.Generator().manual_seed(4)

    def turned(book):
        H, D = book.centroids.shape[0], book.head_dim
        if heads is not None:
            book, H = (
                Codebook(book.centroids[:heads], None, None if book.weights is None else book.weights[:heads]),
                heads,
            )
        turn = torch.linalg.qr(torch.randn(H, D, D, generator=generator, dtype=torch.float64)).Q
        return Codebook(book.centroids, None, book.weights, turn).map(torch.Tensor.double)  # decoding rounds in float32

    found = {side: tuple(map(turned, getattr(books, side))) for side in sides}
    return CodebookSet(**{"keys": books.keys, "values": books.values} | found)


@pytest.fixture(scope="module")
def ids():
    return random_ids(60, seed=5)


@pytest.mark.parametrize("heads", [None, 1])
@pytest.mark.parametrize("sides", [("keys", "values"), ("keys",), ("values",)])
def test_the_real_cache_equals_the_schedule_which_decodes(tiny, books, ids, sides, heads):
    own = rotated(books, sides=sides, heads=heads)
    schedule = run_coded(tiny, ids, own, CONFIG, "exact-schedule")
    assert gap(run_coded(tiny, ids, own, CONFIG, "token"), schedule) <= 1e-9
    assert gap(run_coded(tiny, ids, books, CONFIG, "exact-schedule"), schedule) > 1e-3
    assert gap(run_exact(tiny, ids), schedule) > 1e-3


@pytest.mark.parametrize("paged", [True, False])
def test_chunks_and_contiguous_rows_serve_rotations_too(tiny, books, ids, paged):
    own, layout = rotated(books), {} if paged else {"key_layout": "row", "value_layout": "row"}
    config = CONFIG.model_copy(update={"paged": paged, **layout})
    chunks = run_coded(tiny, ids, own, config, "chunk", chunk_size=5)
    assert gap(chunks, run_coded(tiny, ids, own, CONFIG, "chunk", chunk_size=5)) <= 1e-9
    assert gap(chunks, run_coded(tiny, ids, own, CONFIG, "exact-schedule")) > 1e-3


def test_before_anything_is_coded_only_rounding_differs(tiny, books):
    ids = random_ids(18, seed=6)
    assert gap(run_coded(tiny, ids, rotated(books), CONFIG, "token"), run_exact(tiny, ids)) <= 1e-9


def test_a_rotated_cache_crops_forks_and_counts_like_any_other(books, ids):
    tiny = tiny_lm()
    attach(tiny.model)
    own = rotated(books)
    cache = PQKVCache(tiny.model.config, own, CONFIG)
    stepwise(tiny.model, ids[:, :40], cache)
    cache.crop(-2)
    assert cache.fork(0) == 1
    plain = PQKVCache(tiny.model.config, books, CONFIG)
    stepwise(tiny.model, ids[:, :40], plain)
    plain.crop(-2)
    plain.fork(0)
    assert cache.kv.layers[0].lengths == plain.kv.layers[0].lengths == [38, 38]
    ours, theirs = cache.kv.memory(), plain.kv.memory()
    assert (ours.pages, ours.residual, ours.sinks, ours.tables) == (
        theirs.pages,
        theirs.residual,
        theirs.sinks,
        theirs.tables,
    )
    assert ours.codebooks == own.nbytes()
    after = stepwise(tiny.model, ids[:, 38:50].expand(2, -1), cache)
    assert gap(after[0], after[1]) <= 1e-12
    assert gap(after[:1], run_coded(tiny, ids[:, :50], own, CONFIG, "token")[:, 38:]) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("heads", [None, 1])
def test_a_rotation_is_held_once_and_counted(books, dtype, heads):
    own = rotated(books, heads=heads).map(lambda book: book.map(lambda part: part.to(dtype)))
    config = CONFIG.model_copy(update={"backend": "reference"})
    kv = KVCache(config, Geometry(1, 2, 16, dtype, torch.device("cpu")), 3, own)
    vectors = torch.randn(1, 2, 40, 16, dtype=dtype, generator=torch.Generator().manual_seed(1))
    query = torch.randn(1, 3, 4, 16, dtype=dtype, generator=torch.Generator().manual_seed(2))
    for layer in kv.layers:
        layer.append(vectors, vectors)
        layer.attend(query, vectors[:, :, :3], vectors[:, :, :3], scale=0.25)
    held = {}
    for layer in kv.layers:
        parts = [layer.turn.rotation, layer.turn.weights, layer.store.values.book.centroids]
        parts += layer.store.keys.book.tensors().values()
        held |= {part.data_ptr(): part.untyped_storage().nbytes() for part in parts if part is not None}
    memory = kv.memory()
    assert sum(held.values()) == memory.codebooks
    assert footprint(43, CONFIG, 3, 2, 16, dtype.itemsize, own) == replace(memory, spare=0, derived=0)


def test_the_control_of_rotated_codes_rotates_too(tiny, books, ids):
    own = rotated(books)
    control = shuffled(own)
    assert all(a.rotation is b.rotation for a, b in zip(control.keys, own.keys, strict=True))
    coded = run_coded(tiny, ids, own, CONFIG, "exact-schedule")
    dealt = run_coded(tiny, ids, control, CONFIG, "exact-schedule")
    assert gap(dealt, coded) > 1e-3
    # through the real cache every page is dealt anew, so only that it is dealt can be asked
    assert gap(run_coded(tiny, ids, control, CONFIG, "token"), coded) > 1e-3
