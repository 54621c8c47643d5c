"""Weighted k-means: means of what is nearest, by weight."""

import numpy as np
import pytest
import torch

from pqkv.codec.weighted import weighted_kmeans
from pqkv.errors import DataError


def problem(P=3, N=200, d=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(P, N, d, generator=generator), torch.rand(P, N, generator=generator) ** 6


def cost(points, weights, centroids):
    return float((weights * torch.cdist(points, centroids).amin(-1).square()).sum())


@pytest.mark.parametrize("d", [1, 2, 4])
def test_every_centroid_is_the_weighted_mean_of_its_points(d):
    points, weights = problem(d=d)
    found = weighted_kmeans(points, weights, 3, 200, 0)
    for x, w, centroids in zip(points.double(), weights.double(), found.double(), strict=True):
        sums, mass = np.zeros((8, d)), np.zeros(8)
        for point, weight in zip(x.numpy(), w.numpy(), strict=True):
            place = np.argmin(((centroids.numpy() - point) ** 2).sum(-1))
            sums[place] += weight * point
            mass[place] += weight
        assert (mass > 0).all()
        np.testing.assert_allclose(centroids, sums / mass[:, None], atol=1e-5)


def test_weights_draw_centroids_to_what_they_weigh():
    points, _ = problem(N=2000)
    weights = (3 * points[..., 0]).exp()
    found, plain = (weighted_kmeans(points, w, 4, 50, 0) for w in (weights, torch.ones_like(weights)))
    for x, w, own, other in zip(points, weights, found, plain, strict=True):
        assert cost(x, w, own) < 0.9 * cost(x, w, other)
        assert cost(x, torch.ones_like(w), own) > cost(x, torch.ones_like(w), other)


def test_clusters_far_apart_are_all_found():
    """Random first points would miss one of eight almost surely."""
    centres = torch.arange(8.0)[:, None] * 100
    points = (centres + torch.rand(8, 20, generator=torch.Generator().manual_seed(1))).reshape(1, 160, 1)
    found = weighted_kmeans(points, torch.ones(1, 160), 3, 50, 0).flatten().sort().values
    torch.testing.assert_close(found, points.reshape(8, 20).mean(-1), rtol=1e-5, atol=1e-5)


def test_points_without_weight_are_as_good_as_absent():
    points, weights = problem(N=64)
    weights[:, 32:] = 0
    points[:, 32:] += 50
    assert weighted_kmeans(points, weights, 3, 50, 0).max() < 10


def test_problems_do_not_see_each_other():
    points, weights = problem(P=70)
    together = weighted_kmeans(points, weights, 3, 20, 5)
    for p in (0, 63, 64, 69):
        assert torch.equal(together[p : p + 1], weighted_kmeans(points[p : p + 1], weights[p : p + 1], 3, 20, 5))
    assert not torch.equal(together, weighted_kmeans(points, weights, 3, 20, 6))


@pytest.mark.parametrize("weight", [0.0, 1.0, 1e-30])
def test_no_weights_are_even_weights_and_points_may_coincide(weight):
    points, _ = problem()
    points[1] = 2.5
    found = weighted_kmeans(points, torch.full((3, 200), weight), 3, 20, 0)
    assert torch.equal(found, weighted_kmeans(points, torch.ones(3, 200), 3, 20, 0))
    assert (found[1] == 2.5).all()


def test_of_many_points_some_are_drawn():
    points, weights = problem(N=3000)
    drawn = weighted_kmeans(points, weights, 3, 20, 0, largest=500)
    whole = weighted_kmeans(points, weights, 3, 20, 0)
    for x, w, a, b in zip(points, weights, drawn, whole, strict=True):
        assert not torch.equal(a, b)
        assert cost(x, w, a) < 1.3 * cost(x, w, b)


def test_fewer_points_than_centroids_are_refused():
    with pytest.raises(DataError, match="7 calibration vectors cannot train 8 centroids"):
        weighted_kmeans(*problem(N=7), 3, 20, 0)
