"""OSCAR against its recipe."""

import numpy as np
import pytest
import torch
from peer_samples import made_samples
from recipes import agree, hadamard_of, rounded

from pqkv.codec.peers.oscar import Oscar, OscarOptions, clip_rows
from pqkv.errors import ConfigError

SAMPLES = made_samples(head_dim=16)
REVERSED = [0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15]


def rotation_of(moments):
    """(U H P)^T: eigenvalue rank i stands at the bit-reversed slot."""
    values, axes = np.linalg.eigh(moments)
    mixed = axes[:, np.argsort(-values)] @ hadamard_of(16)
    found = np.zeros((16, 16))
    for rank, slot in enumerate(REVERSED):
        found[slot] = mixed[:, rank]
    return found


def moments_of(side, layer, head):
    queries = SAMPLES.query_moments[layer][head].double().numpy()
    if side == "keys":
        return queries
    keys, values = (x[layer][head].double().numpy() for x in (SAMPLES.keys, SAMPLES.values))
    weights = np.array([k @ queries @ k for k in keys])
    weights = weights / weights.mean()
    return sum(w * np.outer(v, v) for w, v in zip(weights, values, strict=True)) / len(values)


@pytest.mark.parametrize("side", ["keys", "values"])
def test_rotations_are_orthogonal_and_each_heads_own(side):
    codec = Oscar.learnt(OscarOptions(), side, SAMPLES)
    for layer in range(2):
        found = codec.of_layer(layer, "rotation").double()
        torch.testing.assert_close(found @ found.mT, torch.eye(16).double().expand(2, 16, 16), rtol=0, atol=1e-5)
        for head in range(2):
            expected = rotation_of(moments_of(side, layer, head))
            # the signs of eigenvectors are open, and what a rotation makes of the moments does not know them
            moments = moments_of(side, layer, head)
            got, wanted = (matrix @ moments @ matrix.T for matrix in (found[head].numpy(), expected))
            np.testing.assert_allclose(got, wanted, atol=1e-4 * abs(wanted).max())


@pytest.mark.parametrize("channels", [128, 8])
@pytest.mark.parametrize(("side", "rank"), [("keys", 16), ("values", 15)])  # ceil(0.96 * 16), ceil(0.92 * 16)
def test_rows_follow_the_recipe(side, rank, channels):
    codec = Oscar.learnt(OscarOptions(channels=channels), side, SAMPLES)
    x = SAMPLES.of(side)[1][None, :, :40]
    expected = np.zeros(x.shape)
    for h, t in np.ndindex(2, 40):
        matrix = codec.of_layer(1, "rotation")[h].double().numpy()
        z = matrix @ x[0, h, t].double().numpy()
        bound = sorted(abs(z))[rank - 1]
        z = np.array([min(max(c, -bound), bound) for c in z])
        coded = np.concatenate([rounded(part, 2) for part in z.reshape(-1, min(channels, 16))])
        expected[0, h, t] = matrix.T @ coded
    agree(codec.restore(1, x, torch.arange(40)), expected)


@pytest.mark.parametrize(("kept", "rank"), [(0.96, 123), (0.92, 118), (1.0, 128), (0.5, 64)])
def test_a_row_is_clipped_by_its_own_magnitudes_alone(kept, rank):
    rows = torch.randn(3, 5, 128, generator=torch.Generator().manual_seed(0))
    clipped = clip_rows(rows, kept)
    assert (clipped.abs().amax(-1) == rows.abs().sort().values[..., rank - 1]).all()
    assert ((clipped != rows).sum(-1) == 128 - rank).all()
    rows[1, 2] *= 1000
    again = clip_rows(rows, kept)
    assert torch.equal(again[1, 2], 1000 * clipped[1, 2])
    again[1, 2] = clipped[1, 2]
    assert torch.equal(again, clipped)


def test_groups_that_do_not_divide_a_head_are_refused():
    codec = Oscar.learnt(OscarOptions(channels=6), "keys", SAMPLES)
    with pytest.raises(ConfigError, match="6 channels do not divide a head of 16"):
        codec.encode(0, SAMPLES.keys[0][None, :, :3], torch.arange(3))
