"""MILLION as a codec is its trained codebooks."""

import pytest
import torch
from peer_samples import made_samples

from pqkv.codec.peers.million import Million, MillionOptions
from pqkv.codec.training import train_codebooks
from pqkv.errors import ConfigError

SAMPLES = made_samples()


@pytest.mark.parametrize("side", ["keys", "values"])
def test_codes_are_those_of_one_codebook_for_all_layers_and_heads(side):
    options = MillionOptions(num_subspaces=4, nbits=5)
    codec = Million.learnt(options, side, SAMPLES, seed=3)
    book = train_codebooks(
        SAMPLES.of(side), 4, 5, scope="global", iterations=25, seed=3, channels="adjacent", init="random"
    )[0]
    assert book.centroids.shape == (1, 4, 32, 4)
    for layer, vectors in enumerate(SAMPLES.of(side)):
        codes = book.encode(vectors[None])
        assert torch.equal(codec.encode(layer, vectors[None], torch.arange(600))["codes"].values, codes)
        assert torch.equal(codec.restore(layer, vectors[None], torch.arange(600)), book.decode(codes))
    assert codec.fixed_bytes() == 4 * 32 * 4 * 4


def test_other_seeds_and_sides_have_other_centroids():
    options = MillionOptions(num_subspaces=4, nbits=5)
    states = [
        Million.learnt(options, *more).state["centroids"] for more in (("keys", SAMPLES, 0), ("keys", SAMPLES, 1))
    ]
    assert not torch.equal(*states)
    assert not torch.equal(states[0], Million.learnt(options, "values", SAMPLES, 0).state["centroids"])


def test_a_code_shape_is_given_one_way():
    with pytest.raises(ConfigError, match="go together"):
        MillionOptions.parse({"nbits": 8})
    with pytest.raises(ConfigError, match="not both"):
        MillionOptions.parse({"bits": 4, "num_subspaces": 4, "nbits": 8})
