"""Served codebooks restore what the lab's codec does, and what cannot be served is said."""

import pytest
import torch
from served_recipes import KEYS, LAYERS, VALUES, D, H, N, learnt, make_samples

from pqkv.codec.composed import ComposedOptions
from pqkv.codec.product import ProductCodec
from pqkv.codec.served import refusal, served_books
from pqkv.errors import CodebookError, ConfigError


@pytest.fixture(scope="module")
def samples():
    return make_samples()


@pytest.mark.parametrize(
    ("keys", "values"),
    [
        (KEYS, VALUES),
        ({**KEYS, "turning_pairs": 2}, {**VALUES, "grouping": "adjacent"}),
        ({**KEYS, "mean": "constant", "scope": "layer"}, {"gain": True, "transform": "klt"}),
        ({"mean": "turning", "metric": "diagonal"}, {"transform": "hadamard", "centroids": "int8"}),
        ({}, {"gain": True}),
        ({"grouping": "adjacent"}, {"transform": "opq", "scope": "layer"}),
        ({"layer_bits": (2, 4), "num_subspaces": None, "nbits": None}, VALUES),
    ],
    ids=str,
)  # fmt: skip
def test_codebooks_restore_what_the_codec_does(samples, keys, values):
    codecs, books, _ = learnt(samples, keys, values, half=False)
    served = ProductCodec(books)
    for layer in range(LAYERS):
        pair = samples.keys[layer][None], samples.values[layer][None]
        found = served.restore(layer, *pair, samples.positions)
        for side, got, vectors in zip(("keys", "values"), found, pair, strict=True):
            expected = codecs[side].restore(layer, vectors, samples.positions)
            close = (got - expected).abs().amax(-1) <= 2e-5 * expected.abs().max()
            assert close.float().mean() > 0.99  # a vector between two centroids may fall either way
    bits = [codec.of_layer(0, "back").shape and codec for codec in codecs.values()]
    assert len(bits) == 2
    assert books.code_bits == pytest.approx(sum(book.code_bits for book in (*books.keys, *books.values)) / (2 * LAYERS))


def test_what_a_float16_frame_restores_is_what_attention_looks_up(samples):
    """Codes stand for the inverse as it is kept: products with the query and with F^-T of it are the same."""
    _, books, _ = learnt(samples)
    book, keys = books.keys[0], samples.keys[0][None]
    assert book.back.dtype == book.frame.dtype == torch.float16
    coded = book.code(keys, samples.positions)
    restored = book.decode(coded.codes, coded.gains, samples.positions).double()
    query = torch.randn(H, 1, D, dtype=torch.float64)
    centred = book.decode(coded.codes, None, samples.positions).double() - book._turned(samples.positions, N).double()
    plain = torch.linalg.solve(book.back.double(), (centred[0] - _mean(book)).mT)  # (H, D, N): the centroids
    turned = query @ book.back.double()
    bias = (query * (_mean(book) + book._turned(samples.positions, N).double())).sum(-1)
    assert torch.allclose((turned @ plain)[:, 0] + bias, (query @ restored[0].mT)[:, 0], atol=1e-4)


def _mean(book):
    return torch.zeros(()) if book.mean is None else book.mean.double()[:, None]


def test_a_universal_codebook_is_held_once(samples):
    _, books, _ = learnt(samples)
    shared = {book.centroids.data_ptr() for book in books.values}
    assert len(shared) == 1
    alone = sum(book.nbytes() for book in books.values)
    both = books.nbytes() - sum(book.nbytes() for book in books.keys)
    assert alone - both == (LAYERS - 1) * 16 * 2 * 4  # C * d_sub floats


@pytest.mark.parametrize(
    ("side", "options", "message"),
    [
        ("keys", {"rope": "pre"}, "rope=pre"),
        ("keys", {"mean": "turning", "turning_every": 16}, "turning_every"),
        ("keys", {"gain": True}, "gain of keys"),
        ("keys", {"layer_bits": (4, 0)}, "layer_bits of 0"),
        ("keys", {"grouping": "unequal"}, "grouping=unequal"),
        ("values", {"stages": 2}, "stages"),
        ("values", {"mean": "constant"}, "mean and metric of values"),
        ("values", {"metric": "full"}, "mean and metric of values"),
    ],
)
def test_what_is_not_served_is_refused_by_name(side, options, message):
    own = ComposedOptions.parse(options)
    assert message in refusal(own, side)
    other = ComposedOptions()
    keys, values = (own, other) if side == "keys" else (other, own)
    with pytest.raises(ConfigError, match=f"{side}: {message}.* not served"):
        served_books(keys, {}, values, {}, LAYERS)


def test_a_mean_that_turns_wants_positions(samples):
    _, books, _ = learnt(samples)
    with pytest.raises(CodebookError, match="position of every vector"):
        books.keys[0].encode(samples.keys[0][None])


@pytest.mark.parametrize("change", [lambda t: t[:, :3], lambda t: t[..., :8]])
def test_vectors_of_other_shapes_are_refused(samples, change):
    _, books, _ = learnt(samples)
    vectors = torch.zeros(1, 3, 5, D)
    with pytest.raises(CodebookError, match="cannot encode"):
        books.values[0].encode(change(vectors))
