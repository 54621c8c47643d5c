"""AQUA-KV against its recipe."""

import numpy as np
import pytest
import torch
from peer_samples import learnt, made_samples, through, vectors_of
from recipes import agree, hadamard_of, half, nearest_of, turned

from pqkv.codec.gaussian import gaussian_codebook
from pqkv.codec.peers.aqua import grid_codes, grid_vectors
from pqkv.errors import ConfigError

SAMPLES = made_samples(layers=3)
FREQUENCIES = SAMPLES.rotary[0].frequencies


def rows_of(vectors, positions=None):
    """(Hkv, T, D) -> (T, Hkv * D), keys before rotary embedding where positions are given; float64."""
    x = np.asarray(vectors.double())
    x = x if positions is None else turned(x, positions, FREQUENCIES, -1)
    return np.concatenate(list(x), -1)


def regression(seen, wanted):
    """Ridge by stacked least squares: rows of the root of what is added, and a column of ones that costs nothing."""
    centred = seen - seen.mean(0)
    ridge = np.sqrt(1e-3 * np.mean(np.sum(centred**2, 0)))
    top = np.concatenate([seen - seen.mean(0), np.ones((len(seen), 1))], 1)
    bottom = np.concatenate([ridge * np.eye(seen.shape[1]), np.zeros((seen.shape[1], 1))], 1)
    right = np.concatenate([wanted, np.zeros((seen.shape[1], wanted.shape[1]))])
    found = np.linalg.lstsq(np.concatenate([top, bottom]), right, rcond=None)[0]
    return lambda x: (x - seen.mean(0)) @ found[:-1] + found[-1]


def on_grid(rows, bits):
    grid, matrix = gaussian_codebook(2, 2 * bits).double().numpy(), hadamard_of(rows.shape[1])
    found = np.zeros(rows.shape)
    for t, row in enumerate(rows):
        norm = half(np.sqrt(np.mean(row**2)))
        pairs = ((row @ matrix) / norm).reshape(-1, 2)
        found[t] = norm * (np.concatenate([nearest_of(grid, pair) for pair in pairs]) @ matrix)
    return found


def test_layers_follow_the_recipe():
    codec = learnt("aqua:bits=3", SAMPLES)
    everything, positions = vectors_of(SAMPLES, 600)
    decoded = through(codec, everything, positions)  # predictors learn from what is decoded of the samples
    below, few = None, slice(50)
    for layer in range(3):
        keys, values = rows_of(SAMPLES.keys[layer], positions), rows_of(SAMPLES.values[layer])
        own_keys, own_values = rows_of(decoded[layer][0][0], positions), rows_of(decoded[layer][1][0])
        if below is None:
            of_keys, of_values, bits = np.zeros(keys.shape), np.zeros(values.shape), 4
        else:
            seen = np.concatenate([own_keys, below[1]], 1)
            of_keys, of_values, bits = regression(below[0], keys)(below[0]), regression(seen, values)(seen), 3
        expected_keys = of_keys[few] + on_grid(keys[few] - of_keys[few], bits)
        expected_values = of_values[few] + on_grid(values[few] - of_values[few], bits)
        agree(own_keys[few], expected_keys, share=0.95)  # a code that went the other way moves all its token
        agree(own_values[few], expected_values, share=0.95)
        below = own_keys, own_values


def test_what_is_underneath_makes_the_rest_smaller():
    """Layers that are alike cost less than layers that are not."""
    pairs, positions = vectors_of(SAMPLES, 300)
    alike = through(learnt("aqua:bits=2,first_bits=2", SAMPLES), pairs, positions)
    errors = [
        float((found[0] - keys).square().mean() / keys.var()) for found, (keys, _) in zip(alike, pairs, strict=True)
    ]
    assert max(errors[1:]) < 0.6 * errors[0]


@pytest.mark.parametrize("width", [32, 192, 1536, 4096])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_gaussian_is_coded_as_well_as_the_grid_can(width, bits):
    rows = torch.randn(1, 20_000 // width + 20, width, generator=torch.Generator().manual_seed(0))
    codes, norms = grid_codes(rows, bits)
    assert codes.shape[-1] == width // 2
    assert width / norms.shape[-1] == {32: 32, 192: 192, 1536: 768, 4096: 1024}[width]
    error = float((grid_vectors(codes, norms, bits) - rows).square().mean())
    assert error == pytest.approx({2: 0.1076, 3: 0.0299, 4: 0.0079}[bits], rel=0.1)


def test_layers_are_not_left_out():
    codec = learnt("aqua", SAMPLES)
    pairs, positions = vectors_of(SAMPLES, 5)
    with pytest.raises(ConfigError, match="was not coded"):
        codec.encode(1, *pairs[1], positions, None)
    with pytest.raises(ConfigError, match="pairs of channels"):
        codec.encode(0, torch.zeros(1, 2, 5, 3), torch.zeros(1, 2, 5, 3), positions, None)
