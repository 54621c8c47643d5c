"""k-means++ draws as it says it does, the same on any number of threads, and what it is for holds on heavy tails."""

import numpy as np
import pytest
import torch

from pqkv.codec.kmeans import kmeans
from pqkv.codec.seeding import plus_plus

MASK = 2**64 - 1


def uniforms(seed):
    """The documented generator, in Python's integers."""
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) & MASK
        yield (state >> 11) * 2.0**-53


def drawn_by_the_book(points, wanted, seed):
    """k-means++ of points (N, S) in float64, one draw after another."""
    numbers, x = uniforms(seed), points.astype(np.float64)
    chosen = [int(next(numbers) * len(x))]
    nearest = np.full(len(x), np.inf)
    for _ in range(wanted - 1):
        nearest = np.minimum(nearest, ((x - x[chosen[-1]]) ** 2).sum(1))
        running = np.cumsum(nearest)
        chosen.append(int(np.searchsorted(running, next(numbers) * running[-1], side="right")))
    return points[chosen]


@pytest.mark.parametrize(("N", "S", "wanted"), [(1, 2, 1), (64, 1, 9), (65, 2, 65), (300, 4, 40), (1000, 3, 64)])
@pytest.mark.parametrize("seed", [0, 11])
def test_points_are_drawn_by_their_squared_distance_to_those_before(N, S, wanted, seed):
    # multiples of 1/8: every distance is exact in float32, so that no draw hangs on rounding
    points = (np.random.default_rng(seed).standard_t(3, (3, N, S)) * 8).round() / 8
    if wanted == N:  # then none may be there twice
        points = points.round() + 100 * np.arange(N)[:, None]
    found = plus_plus(points.astype(np.float32), wanted, seed)
    for own, centroids in zip(points, found, strict=True):
        np.testing.assert_array_equal(centroids, drawn_by_the_book(own.astype(np.float32), wanted, seed))


def test_where_there_are_fewer_places_than_centroids_every_place_is_taken():
    places = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    points = places[np.random.default_rng(1).integers(0, 5, 200)][None]
    found = plus_plus(points, 16, 0)[0]
    assert len(np.unique(found, axis=0)) == 5
    assert len(np.unique(found[:5], axis=0)) == 5  # before any comes twice
    assert np.isfinite(found).all()


def test_the_number_of_threads_and_the_other_problems_change_nothing():
    points = np.random.default_rng(0).standard_normal((40, 500, 2)).astype(np.float32)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = plus_plus(points, 64, 3)
        torch.set_num_threads(2)
        np.testing.assert_array_equal(plus_plus(points, 64, 3), alone)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(plus_plus(points[7:8], 64, 3), alone[7:8])
    assert not np.array_equal(plus_plus(points, 64, 4), alone)


def test_on_heavy_tails_it_loses_less_than_random_points_do():
    """Of held-out points, after as many steps; on light tails it is no worse."""

    def lost(points, unseen, init):
        centroids = kmeans(points[None], 8, 25, 0, init=init)[0]
        return ((unseen[:, None] - centroids) ** 2).sum(-1).min(1).sum()

    for draw, most in ((lambda r, n: r.standard_t(3, (n, 2)), 0.85), (lambda r, n: r.standard_normal((n, 2)), 1.0)):
        points, unseen = (draw(np.random.default_rng(s), 6000).astype(np.float32) for s in (1, 2))
        assert lost(points, unseen, "k-means++") < most * lost(points, unseen, "random")
