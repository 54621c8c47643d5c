"""Coupled quantization against its recipe."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peer_samples import made_samples
from recipes import agree, nearest_of, turned

from pqkv.codec.peers.cq import CQ, CQOptions
from pqkv.errors import ConfigError

SAMPLES = made_samples()
OPTIONS = CQOptions(channels=4, nbits=4, iterations=200)


def still(side, layer, gradients=False):
    """Vectors or gradients (Hkv, N, D) before rotary embedding, float64."""
    names = {False: {"keys": SAMPLES.keys, "values": SAMPLES.values}}
    names[True] = {"keys": SAMPLES.key_gradients, "values": SAMPLES.value_gradients}
    found = names[gradients][side][layer].double().numpy()
    return turned(found, SAMPLES.positions, SAMPLES.rotary[layer].frequencies, -1) if side == "keys" else found


@pytest.mark.parametrize("side", ["keys", "values"])
def test_centroids_are_means_weighted_by_squared_gradients(side):
    codec = CQ.learnt(OPTIONS, side, SAMPLES)
    for layer in range(2):
        centroids = codec.of_layer(layer, "centroids").double().numpy()
        assert centroids.shape == (2, 4, 16, 4)
        for head, m in np.ndindex(2, 4):
            part = slice(4 * m, 4 * m + 4)
            points, costs = still(side, layer)[head, :, part], still(side, layer, gradients=True)[head, :, part]
            sums, mass = np.zeros((16, 4)), np.zeros(16)
            for point, gradient in zip(points, costs, strict=True):
                place = np.argmin(((centroids[head, m] - point) ** 2).sum(-1))
                sums[place] += sum(gradient**2) * point
                mass[place] += sum(gradient**2)
            # a tie at a border may have gone the other way in single precision
            apart = np.abs(sums / mass[:, None] - centroids[head, m]).max(-1)
            assert np.median(apart) < 1e-4
            assert (apart < 1e-3).mean() > 0.8


@pytest.mark.parametrize("side", ["keys", "values"])
def test_codes_are_nearest_centroids_before_rotary_embedding(side):
    codec = CQ.learnt(OPTIONS, side, SAMPLES)
    x, positions = SAMPLES.of(side)[1][None, :, 100:130], SAMPLES.positions[100:130]
    frequencies = SAMPLES.rotary[1].frequencies
    centroids = codec.of_layer(1, "centroids").double().numpy()
    vectors = still(side, 1)[None, :, 100:130]
    expected = np.zeros(x.shape)
    for h, t, m in np.ndindex(2, 30, 4):
        part = slice(4 * m, 4 * m + 4)
        expected[0, h, t, part] = nearest_of(centroids[h, m], vectors[0, h, t, part])
    expected = turned(expected, positions, frequencies) if side == "keys" else expected
    agree(codec.restore(1, x, positions), expected)


def test_without_fisher_information_all_points_weigh_the_same():
    bare = replace(SAMPLES, key_gradients=None, value_gradients=None)
    even = replace(SAMPLES, value_gradients=tuple(torch.ones_like(g) for g in SAMPLES.value_gradients))
    options = CQOptions(channels=4, nbits=4, fisher=False)
    plain = CQ.learnt(options, "values", bare).state
    weighted = CQ.learnt(CQOptions(channels=4, nbits=4), "values", even).state
    assert all(torch.equal(plain[name], weighted[name]) for name in plain)
    with pytest.raises(ConfigError, match="samples hold none"):
        CQ.learnt(CQOptions(), "values", bare)


def test_channels_that_do_not_divide_a_head_are_refused():
    with pytest.raises(ConfigError, match="couples 3 channels"):
        CQ.learnt(CQOptions(channels=3, nbits=4), "keys", SAMPLES)
    with pytest.raises(ConfigError, match="go together"):
        CQOptions.parse({"channels": 3})
