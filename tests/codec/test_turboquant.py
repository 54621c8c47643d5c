"""TurboQuant against its published distortion and its recipe."""

import numpy as np
import pytest
import torch
from recipes import agree, rounded

from pqkv.codec.peers.lloyd_max import nearest_level, normal_levels
from pqkv.codec.peers.turboquant import TurboQuant, TurboQuantOptions, turn

POSITIONS = torch.arange(6)


def codec(side="keys", **options):
    return TurboQuant(TurboQuantOptions(**options), side, {})


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("bits", "published"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_distortion_of_a_gaussian_is_the_published_one(bits, published):
    x = gaussian(2_000_000).double()
    levels = normal_levels(bits)
    assert float((levels[nearest_level(x, levels).long()] - x).square().mean()) == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(("bits", "published"), [(1, 0.3634), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_keys_of_any_length_have_that_distortion(bits, published):
    """What the turn is for: channels of very different spread, and tokens of very different length."""
    x = gaussian(1, 1, 4000, 128) * gaussian(128, seed=1) * gaussian(4000, 1, seed=2).exp()
    restored = codec(bits=bits).restore(0, x, torch.arange(4000))
    errors = (restored - x).square().sum(-1) / x.square().sum(-1)
    assert float(errors.mean()) == pytest.approx(published, rel=0.05)
    if bits > 1:  # without a turn
        levels = normal_levels(bits).float()
        unit = x / x.square().mean(-1, keepdim=True).sqrt()
        assert float((levels[nearest_level(unit, levels).long()] - unit).square().mean()) > 2 * published


def test_levels_are_those_of_max():
    """Max 1960, table I."""
    expected = [-2.152, -1.344, -0.7560, -0.2451, 0.2451, 0.7560, 1.344, 2.152]
    torch.testing.assert_close(normal_levels(3), torch.tensor(expected).double(), rtol=5e-4, atol=0)


@pytest.mark.parametrize("size", [1, 8, 48, 128])
def test_turns_are_orthogonal_and_the_layers_own(size):
    matrix = turn(0, size)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(size).double())
    if size > 8:
        assert not torch.equal(matrix, turn(1, size))
        assert (matrix[:, 0] < 0).any()
        assert (matrix[:, 0] > 0).any()


@pytest.mark.parametrize("renormalise", [False, True])
def test_keys_follow_the_recipe(renormalise):
    x = gaussian(1, 2, 6, 16) * 3
    matrix, levels = turn(4, 16).numpy(), normal_levels(3).numpy() / 4
    expected = np.zeros(x.shape)
    for place in np.ndindex(1, 2, 6):
        vector = x[place].double().numpy()
        norm = np.linalg.norm(vector)
        direction = (vector / norm) @ matrix
        decoded = np.array([levels[np.argmin(np.abs(levels - c))] for c in direction])
        if renormalise:
            decoded = decoded / np.linalg.norm(decoded)
        expected[place] = np.float64(np.float16(norm)) * (decoded @ matrix.T)
    agree(codec(bits=3, renormalise=renormalise).restore(4, x, POSITIONS), expected)


def test_renormalised_keys_are_as_long_as_they_were():
    x = gaussian(1, 2, 6, 64)
    for renormalise, close in ((True, 1e-3), (False, 2e-2)):
        found = codec(bits=2, renormalise=renormalise).restore(0, x, POSITIONS)
        apart = (found.norm(dim=-1) / x.norm(dim=-1) - 1).abs().max()
        assert (apart < close) == renormalise


def test_values_are_rounded_between_their_ends():
    x = gaussian(1, 2, 6, 16) * 3
    expected = np.apply_along_axis(rounded, -1, x.double().numpy(), 3)
    agree(codec("values", bits=3).restore(0, x, POSITIONS), expected)
    torch.testing.assert_close(
        codec("values", bits=3, values="keys").restore(0, x, POSITIONS), codec(bits=3).restore(0, x, POSITIONS)
    )
