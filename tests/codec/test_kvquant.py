"""KVQuant against its recipe."""

import numpy as np
import pytest
import torch
from peer_samples import made_samples
from recipes import agree, half, turned

from pqkv.codec.peers.kvquant import KVQuant, KVQuantOptions, outermost
from pqkv.codec.planes import pack_planes

SAMPLES = made_samples(head_dim=32)
OPTIONS = {share: KVQuantOptions(bits=3, outliers=share, iterations=200) for share in (0, 0.05)}


def token_rows(side, layer, tensors=None):
    """What tokens have in all heads, (N, Hkv * D), keys before rotary embedding, float64."""
    x = (tensors or SAMPLES.of(side))[layer].double().numpy()
    x = turned(x, SAMPLES.positions, SAMPLES.rotary[layer].frequencies, -1) if side == "keys" else x
    return np.concatenate(list(x), -1)


def ends(side, rows, share, calibration):
    """Least and largest of the range of every number and whether it is an outlier."""
    if side == "keys":
        low, high = np.quantile(calibration, share / 2, 0), np.quantile(calibration, 1 - share / 2, 0)
        outlying = (rows < low) | (rows > high)
        return np.broadcast_to(low, rows.shape), np.broadcast_to(high, rows.shape), outlying
    low, high, outlying = np.zeros(rows.shape), np.zeros(rows.shape), np.zeros(rows.shape, bool)
    for t, row in enumerate(rows):
        if share:  # linear between order statistics, and what is at or past it is an outlier
            outlying[t] = (row <= np.quantile(row, share / 2)) | (row >= np.quantile(row, 1 - share / 2))
        low[t], high[t] = row[~outlying[t]].min(), row[~outlying[t]].max()
    return low, high, outlying


@pytest.mark.parametrize("share", [0, 0.05])
@pytest.mark.parametrize("side", ["keys", "values"])
def test_tokens_follow_the_recipe(side, share):
    codec = KVQuant.learnt(OPTIONS[share], side, SAMPLES)
    levels = codec.of_layer(1, "levels").double().numpy()
    assert len(levels) == 8
    window = slice(100, 140)
    calibration = token_rows(side, 1)
    rows = calibration[window]
    low, high, outlying = ends(side, rows, share, calibration)
    assert bool(outlying.any()) == bool(share)
    zero, reach = (high + low) / 2, (high - low) / 2
    if side == "values":
        zero, reach = half(zero), half(reach)
    expected = np.zeros(rows.shape)
    for place in np.ndindex(rows.shape):
        even = (rows[place] - zero[place]) / reach[place]
        expected[place] = levels[np.argmin(np.abs(levels - even))] * reach[place] + zero[place]
        if outlying[place]:
            expected[place] = half(rows[place])
    expected = np.stack(np.split(expected, 2, -1))[None]
    positions = SAMPLES.positions[window]
    expected = turned(expected, positions, SAMPLES.rotary[1].frequencies) if side == "keys" else expected
    agree(codec.restore(1, SAMPLES.of(side)[1][None, :, window], positions), expected)


@pytest.mark.parametrize("share", [0, 0.05])
@pytest.mark.parametrize("side", ["keys", "values"])
def test_levels_are_weighted_means_of_what_is_nearest(side, share):
    levels = KVQuant.learnt(OPTIONS[share], side, SAMPLES).of_layer(0, "levels").double().numpy()
    rows = token_rows(side, 0)
    gradients = token_rows(side, 0, SAMPLES.key_gradients if side == "keys" else SAMPLES.value_gradients)
    low, high, outlying = ends(side, rows, share, rows)
    even = ((rows - (high + low) / 2) / ((high - low) / 2))[~outlying]
    weights = (gradients**2)[~outlying]
    own = np.abs(even[:, None] - levels).argmin(-1)
    means = [np.average(even[own == c], weights=weights[own == c]) for c in range(8)]
    np.testing.assert_allclose(levels, means, atol=2e-3)
    assert (np.abs(levels) <= 1 + 1e-6).all()


@pytest.mark.parametrize("side", ["keys", "values"])
def test_outliers_are_kept_and_make_the_rest_finer(side):
    positions = SAMPLES.positions[:200]
    x = SAMPLES.of(side)[1][None, :, :200].clone()
    errors = []
    for share in (0, 0.05):
        codec = KVQuant.learnt(OPTIONS[share], side, SAMPLES)
        planes = codec.encode(1, x, positions)
        errors.append(float((codec.decode(1, planes, positions) - x).square().mean()))
        packed = pack_planes(planes)
    assert errors[1] < errors[0]
    count = len(packed["outliers"].data) // 2
    assert 0.03 < count / x.numel() < 0.08
    assert len(packed["outlier_channels"].data) == count  # 64 channels in all: a byte
    assert len(packed["outlier_counts"].data) == 200


@pytest.mark.parametrize("width", [192, 300, 512])
def test_rows_too_long_for_bytes_take_two(width):
    rows = torch.randn(1, 1, 3, width, generator=torch.Generator().manual_seed(0))
    codec = KVQuant(KVQuantOptions(outliers=0.01), "values", {"0.levels": torch.linspace(-1, 1, 16)})
    planes = codec.encode(0, rows, torch.arange(3))
    size = 1 if width == 192 else 2
    assert planes["outlier_channels"].values.element_size() == planes["outlier_counts"].values.element_size() == size
    found = codec.decode(0, planes, torch.arange(3))
    ends_of_rows = rows.sort().values[..., [0, -1]]
    assert torch.equal(found.sort().values[..., [0, -1]], ends_of_rows.half().float())


@pytest.mark.parametrize(("width", "count"), [(64, 1), (192, 1), (1024, 6), (4096, 21)])
def test_as_many_are_outermost_as_are_past_the_quantile(width, count):
    rows = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    chosen = outermost(rows, 0.01)
    upper, lower = rows.double().quantile(0.995, -1, True), rows.double().quantile(0.005, -1, True)
    assert torch.equal(chosen, (rows.double() >= upper) | (rows.double() <= lower))
    assert (chosen.sum(-1) == 2 * count).all()
