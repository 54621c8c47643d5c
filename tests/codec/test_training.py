import weakref
from typing import ClassVar

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.codec.grouping import balanced_channels
from pqkv.codec.training import relative_error, train_codebooks
from pqkv.errors import DataError

HEADS, LAYERS, DIM = 2, 3, 8


def samples(layers=LAYERS, heads=HEADS, count=200, dim=DIM, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(heads, count, dim, generator=generator) * (layer + 1) for layer in range(layers)]


def train(vectors, M=4, nbits=4, *, scope="head", iterations=5, seed=0, **more):
    return train_codebooks(vectors, M, nbits, scope=scope, iterations=iterations, seed=seed, **more)


def content(books):
    parts = [(book.centroids, book.channels, book.weights, book.rotation) for book in books]
    return [None if part is None else part.numpy().tobytes() for book in parts for part in book]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("channels", ["balanced", "opq"])
@pytest.mark.parametrize("scope", ["head", "layer", "global"])
def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(threads, scope, channels):
    weights = [torch.rand(HEADS, DIM, generator=torch.Generator().manual_seed(1)) + 0.5] * LAYERS
    found = []
    for count in (1, 4, 2):
        threads(count)
        found.append(content(train(samples(), scope=scope, weights=weights, channels=channels)))
    assert found[0] == found[1] == found[2]


def test_another_seed_gives_other_centroids():
    assert content(train(samples(), seed=0)) != content(train(samples(), seed=1))


def test_training_leaves_its_vectors_and_the_global_seed_alone():
    vectors, torch_state = samples(), torch.get_rng_state()
    train(vectors, scope="global")
    assert all(torch.equal(a, b) for a, b in zip(vectors, samples(), strict=True))
    assert torch.equal(torch.get_rng_state(), torch_state)


@pytest.mark.parametrize(("scope", "heads", "distinct"), [("head", HEADS, 3), ("layer", 1, 3), ("global", 1, 1)])
def test_scope_says_what_shares_a_codebook(scope, heads, distinct):
    books = train(samples(), scope=scope, weights=[torch.ones(HEADS, DIM)] * LAYERS)
    assert len(books) == LAYERS
    assert len({book.centroids.data_ptr() for book in books}) == distinct
    for book in books:
        assert book.centroids.shape == (heads, 4, 16, 2)
        assert book.centroids.dtype == torch.float32
        assert (book.channels.shape, book.channels.dtype) == ((heads, DIM), torch.int64)
        assert book.weights.shape == (heads, DIM)


def test_each_head_and_each_layer_learns_from_its_own_vectors():
    vectors = samples()
    changed = [vector.clone() for vector in vectors]
    changed[1][0] += 100
    before, after = train(vectors, channels="adjacent"), train(changed, channels="adjacent")
    for layer in range(LAYERS):
        for head in range(HEADS):
            same = torch.equal(before[layer].centroids[head], after[layer].centroids[head])
            assert same == ((layer, head) != (1, 0))


def test_pooled_scopes_learn_from_as_many_vectors_of_all_heads_and_layers():
    noise = torch.randn(HEADS, 64, DIM, generator=torch.Generator().manual_seed(0)) / 100
    vectors = [noise + layer for layer in range(LAYERS)]
    (book, *_) = train(vectors, scope="global", nbits=2)
    means = book.centroids[0].mean((0, 2))  # of a vector near a layer's: near that layer's number
    assert {round(float(mean)) for mean in means} <= {0, 1, 2}
    assert {round(float(value)) for value in book.centroids.flatten()} == {0, 1, 2}


def test_without_balance_and_weights_a_codebook_has_neither():
    book = train(samples(), channels="adjacent")[0]
    assert book.channels is None
    assert book.weights is None


@pytest.mark.parametrize("scope", ["head", "layer", "global"])
def test_fewer_vectors_than_centroids_are_refused(scope):
    assert train(samples(count=16), nbits=4, scope=scope)[0].centroids.shape[2] == 16
    with pytest.raises(DataError, match="15 calibration vectors cannot train 16 centroids"):
        train(samples(count=15), nbits=4, scope=scope)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused(broken):
    vectors = samples()
    vectors[1][0, 3, 2] = broken
    with pytest.raises(DataError, match="NaN or infinite"):
        train(vectors)


def test_as_many_centroids_as_vectors_code_every_vector_exactly():
    vectors = samples(layers=1, count=16)
    weights = torch.rand(HEADS, DIM, generator=torch.Generator().manual_seed(1)) * 5 + 0.1
    for metric in (None, [weights]):
        (book,) = train(vectors, nbits=4, weights=metric)
        assert relative_error(book, vectors[0]) < 1e-12


@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_a_vector_that_occurs_again_and_again_has_one_code_whatever_the_rounding(init):
    (vectors,) = samples(layers=1, heads=1, count=600)
    often = vectors[0, 0].clone()
    vectors[0, ::2] = often
    (book,) = train([vectors], nbits=6, iterations=10, init=init)
    if init == "random":  # it starts on many of them, and they get a centroid of their own; one point starts on one
        assert torch.allclose(book.decode(book.encode(often.expand(1, 1, 1, DIM)))[0, 0, 0], often, atol=1e-6)
    codes = book.encode(often + torch.linspace(-1e-5, 1e-5, 50)[:, None].expand(1, 1, 50, DIM))
    assert torch.equal(codes, codes[:, :, :1].expand_as(codes))


def test_only_ratios_of_weights_count():
    weights = torch.rand(HEADS, DIM, generator=torch.Generator().manual_seed(1)) + 0.1
    one, other = (train(samples(layers=1), weights=[weights * factor])[0] for factor in (1, 1024))
    assert torch.equal(one.centroids, other.centroids)
    plain, uniform = (train(samples(layers=1), weights=w)[0] for w in (None, [torch.full((HEADS, DIM), 0.25)]))
    assert torch.equal(plain.centroids, uniform.centroids)


def test_constant_channels_and_channels_no_query_looks_at_still_train():
    vectors = samples(layers=1)
    vectors[0][:, :, 3] = 0
    weights = torch.ones(HEADS, DIM)
    weights[:, 5] = 0
    (book,) = train(vectors, weights=[weights])
    assert torch.isfinite(book.centroids).all()
    assert relative_error(book, vectors[0]) < 1


@pytest.mark.parametrize(("scope", "total"), [("head", 3 * HEADS * 32), ("layer", 3 * 32), ("global", 32)])
def test_progress_counts_subspaces_before_the_first_and_many_times_within_a_layer(threads, scope, total):
    """A single codebook for everything must not be silent until it is done."""
    threads(2)
    seen = []
    train(samples(dim=64), M=32, iterations=1, scope=scope, progress=lambda *news: seen.append(news))
    assert seen == [(done, total) for done in range(0, total + 1, 16)]


@pytest.mark.parametrize("scope", ["head", "layer", "global"])
def test_layers_are_taken_one_after_another_and_never_copied_together(scope):
    """Memory stays that of one layer beside the samples, whatever the number of layers."""

    class Layers(list):
        held: ClassVar[list] = []

        def __getitem__(self, index):
            if isinstance(index, slice):
                return Layers(super().__getitem__(index))
            return self.lend(super().__getitem__(index))

        def __iter__(self):
            return (self[i] for i in range(len(self)))

        def lend(self, layer):
            assert sum(lent() is not None for lent in self.held) <= 1
            copy = layer.clone()
            self.held.append(weakref.ref(copy))
            return copy

    weights = [torch.ones(HEADS, DIM)] * 6
    books = train(Layers(samples(layers=6)), scope=scope, weights=weights)
    assert content(books) == content(train(samples(layers=6), scope=scope, weights=weights))


@pytest.mark.parametrize(("M", "nbits"), [(8, 5), (4, 6), (1, 4)])
def test_the_error_is_that_of_the_faiss_product_quantizer(M, nbits):
    vectors = samples(layers=1, heads=1, count=2000, dim=16)[0]
    (book,) = train([vectors], M, nbits, iterations=25, channels="adjacent")
    quantizer = faiss.ProductQuantizer(16, M, nbits)
    quantizer.train(vectors[0].numpy())
    restored = quantizer.decode(quantizer.compute_codes(vectors[0].numpy()))
    theirs = float(((restored - vectors[0].numpy()) ** 2).sum() / (vectors**2).sum())
    assert relative_error(book, vectors) == pytest.approx(theirs, rel=0.02)


def products(variance, order, M):
    return variance.log()[order].unflatten(0, (M, -1)).sum(-1)


@given(variance=st.lists(st.floats(0, 1e6), min_size=12, max_size=12), M=st.sampled_from([1, 2, 3, 4, 6, 12]))
@settings(max_examples=100, deadline=None)
def test_a_balanced_order_holds_every_channel_once(variance, M):
    order = balanced_channels(torch.tensor(variance), M)
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(12))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("M", [8, 16, 32])
def test_a_balanced_order_brings_the_products_of_variances_together(seed, M):
    variance = torch.randn(64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).exp()
    natural, balanced = (products(variance, order, M) for order in (torch.arange(64), balanced_channels(variance, M)))
    assert balanced.std() < natural.std() / 2
    assert balanced.max() - balanced.min() < natural.max() - natural.min()


def test_a_balanced_order_pairs_the_loudest_channel_with_the_quietest():
    order = balanced_channels(torch.tensor([1.0, 2.0, 4.0, 8.0]), 2)
    assert {frozenset(pair) for pair in order.unflatten(0, (2, 2)).tolist()} == {frozenset({0, 3}), frozenset({1, 2})}


def score_error(book, keys, queries):
    """E[(q . (k - decoded k))^2] over all pairs."""
    error = keys - book.decode(book.encode(keys[None, None]))[0, 0]
    return float((queries.double() @ error.double().T).square().mean())


@pytest.mark.parametrize("seed", range(3))
def test_balance_with_weights_lowers_the_error_of_scores(seed):
    generator = torch.Generator().manual_seed(seed)
    dim, loud = 16, torch.arange(16) < 4
    keys = torch.randn(2000, dim, generator=generator) * torch.where(loud, 6.0, 1.0)
    loudness = torch.logspace(-1, 1, dim)[torch.randperm(dim, generator=generator)]
    queries = torch.randn(400, dim, generator=generator) * loudness
    calibration, unseen = keys[:1500], keys[1500:]
    weights = [queries.square().mean(0).sqrt()[None]]
    errors = {
        (channels, weighted): score_error(
            train([calibration[None]], 8, 4, channels=channels, weights=weights if weighted else None)[0],
            unseen,
            queries,
        )
        for channels in ("adjacent", "balanced")
        for weighted in (False, True)
    }
    both = errors["balanced", True]
    assert both < min(errors["balanced", False], errors["adjacent", True])
    assert both < 0.25 * errors["adjacent", False]


def test_relative_error_is_zero_for_centroids_and_one_for_a_zero_codebook():
    vectors = samples(layers=1)[0]
    vectors = vectors - vectors.mean(1, keepdim=True)
    (book,) = train([vectors])
    restored = book.decode(book.encode(vectors[None]))[0]
    assert relative_error(book, restored) == 0
    assert relative_error(book.map(torch.zeros_like), vectors) == pytest.approx(1)
    by_hand = float(np.square(restored.numpy() - vectors.numpy()).sum() / np.square(vectors.numpy()).sum())
    assert relative_error(book, vectors) == pytest.approx(by_hand, rel=1e-5)


def test_where_vectors_stand_does_not_change_their_error():
    """Keys with large biases: over their energy the same damage would look tens of times smaller."""
    vectors = samples(layers=1)[0]
    shifted = vectors + 100 * vectors.std() * torch.randn(vectors.shape[0], 1, vectors.shape[2])
    errors = [relative_error(train([part])[0], part) for part in (vectors, shifted)]
    assert errors[1] == pytest.approx(errors[0], rel=0.05)


def test_an_error_in_a_metric_counts_channels_by_their_weights():
    vectors = samples(layers=1)[0]
    (book,) = train([vectors])
    weights = torch.rand(vectors.shape[0], vectors.shape[2]) + 0.1
    restored = book.decode(book.encode(vectors[None]))[0]
    squares, spread = (restored - vectors).square(), (vectors - vectors.mean(1, keepdim=True)).square()
    by_hand = (squares * weights[:, None] ** 2).sum() / (spread * weights[:, None] ** 2).sum()
    assert relative_error(book, vectors, weights) == pytest.approx(float(by_hand), rel=1e-5)
    assert relative_error(book, vectors, torch.full_like(weights, 3.0)) == pytest.approx(relative_error(book, vectors))
