"""k-means of many problems at once is Lloyd's algorithm, and FAISS's, though most distances are never computed."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.codec.kmeans import first_points, kmeans
from pqkv.codec.lloyd import lloyd
from pqkv.codec.tiles import TILE, tile_order


def distances(points, centroids):
    """Squared distances (N, C) in float64, difference by difference."""
    return ((points.astype(np.float64)[:, None] - centroids.astype(np.float64)) ** 2).sum(-1)


def means(points, centroids, codes):
    """The means of the points of each centroid; one without points stays."""
    moved = centroids.copy()
    for c in np.unique(codes):
        moved[c] = points[codes == c].astype(np.float64).sum(0) / np.count_nonzero(codes == c)
    return moved


@st.composite
def whole_numbers(draw):
    """Points and centroids of small whole numbers far from the origin: float arithmetic on them is exact, and equal
    minima, equal points and centroids without points abound.
    """
    P, N, S = draw(st.integers(1, 3)), draw(st.integers(1, 400)), draw(st.sampled_from([1, 2, 3, 4, 8]))
    C, reach = draw(st.integers(1, 70)), draw(st.sampled_from([1, 3, 20, 100]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    stretch = random.integers(0, 2, S) * random.integers(1, 6, S)  # channels of unlike spread, constant ones too
    start = random.integers(-1000, 1000, S)
    points = random.integers(-reach, reach + 1, (P, N, S)) * stretch + start
    centroids = random.integers(-reach, reach + 1, (P, C, S)) * stretch + start
    return points.astype(np.float32), centroids.astype(np.float32)


@given(case=whole_numbers())
@settings(max_examples=150, deadline=None)
def test_a_step_gives_every_point_the_first_of_its_nearest_centroids_and_takes_means(case):
    points, centroids = case
    before = centroids.copy()
    found, codes = lloyd(points, centroids, 0)
    np.testing.assert_array_equal(centroids, before)
    for p in range(len(points)):
        np.testing.assert_array_equal(codes[p], distances(points[p], centroids[p]).argmin(1))
        np.testing.assert_array_equal(found[p], means(points[p], centroids[p], codes[p]))


def heavy_tailed(P, N, S, seed=0):
    random = np.random.default_rng(seed)
    points = random.standard_normal((P, N, S)) * random.uniform(0.05, 3, (P, 1, S)) + random.normal(0, 30, (P, 1, S))
    return (points / np.sqrt(random.gamma(3, 1 / 3, (P, N, 1)))).astype(np.float32)


SHAPES = [(1, 2), (1, 256), (2, 2), (2, 16), (2, 256), (2, 4096), (4, 256), (8, 64), (8, 256), (16, 32)]


@pytest.mark.parametrize(("S", "C"), SHAPES)
def test_no_centroid_is_nearer_than_float32_can_tell_and_means_are_exact_at_any_step(S, C):
    points = heavy_tailed(1, 5000, S)
    centroids = points[:, first_points(5000, C, 0)]
    for _ in range(3):
        found, codes = lloyd(points, centroids, 0)
        exact = distances(points[0], centroids[0])
        taken = np.take_along_axis(exact, codes[0][:, None], 1)[:, 0]
        assert (taken <= exact.min(1) * (1 + 1e-5)).all()
        np.testing.assert_allclose(found[0], means(points[0], centroids[0], codes[0]), rtol=2e-7)
        centroids = found


@pytest.mark.parametrize(("S", "C"), SHAPES)
def test_several_iterations_are_as_many_steps_where_every_centroid_has_points(S, C):
    points = heavy_tailed(2, 5000, S, seed=1)
    stepped = points[:, first_points(5000, C, 0)]
    together = lloyd(points, stepped, 3)
    for _ in range(4):
        stepped, codes = lloyd(points, stepped, 0)
        if (counts := np.array([np.bincount(own, minlength=C) for own in codes])).min() == 0:
            pytest.skip(f"{np.count_nonzero(counts == 0)} centroids have no points")
    np.testing.assert_array_equal(together[0], stepped)
    np.testing.assert_array_equal(together[1], codes)


def of_faiss(points, nbits, iterations, seed):
    """What FAISS finds (C, d_sub) for points (N, d_sub), then one step of means."""
    clustering = faiss.Clustering(points.shape[1], 2**nbits)
    clustering.niter, clustering.seed = iterations, seed
    clustering.min_points_per_centroid, clustering.max_points_per_centroid = 1, 1 << 30
    index = faiss.IndexFlatL2(points.shape[1])
    clustering.train(points, index)
    centroids = faiss.vector_to_array(clustering.centroids).reshape(-1, points.shape[1])
    return means(points, centroids, index.search(points, 1)[1][:, 0])


@pytest.mark.parametrize(("S", "nbits", "iterations"), [(1, 4, 25), (2, 6, 25), (2, 8, 10), (4, 8, 25), (8, 6, 25)])
@pytest.mark.parametrize("seed", [0, 7])
def test_it_starts_where_faiss_starts_and_ends_where_faiss_ends(S, nbits, iterations, seed):
    points = np.random.default_rng(seed).standard_normal((2, 4000, S)).astype(np.float32)
    found = kmeans(points, nbits, iterations, seed, init="random")
    for own, centroids in zip(points, found, strict=True):
        np.testing.assert_allclose(centroids, of_faiss(own, nbits, iterations, seed), atol=1e-5)


@pytest.mark.parametrize(("S", "nbits"), [(2, 8), (4, 6)])
def test_where_points_occur_again_and_again_the_error_is_that_of_faiss(S, nbits):
    """First centroids coincide, and those without points are made twins of others, by other random numbers."""
    ratios = []
    for seed in range(6):
        random = np.random.default_rng(seed)
        rare, often = random.standard_normal((1200, S)), random.standard_normal((12, S))
        points = np.concatenate([rare, often[random.integers(0, 12, 2800)]])[random.permutation(4000)]
        points = points.astype(np.float32)
        ours, theirs = (
            distances(points, centroids).min(1).sum()
            for centroids in (kmeans(points[None], nbits, 25, 0, init="random")[0], of_faiss(points, nbits, 25, 0))
        )
        ratios.append(ours / theirs)
    assert np.exp(np.mean(np.log(ratios))) < 1.05


@given(N=st.integers(1, 700), S=st.integers(1, 6), seed=st.integers(0, 2**32), constant=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_order_of_tiles_holds_every_point_once(N, S, seed, constant):
    points = np.random.default_rng(seed).standard_cauchy((N, S)).astype(np.float32)
    if constant:
        points[:, 0] = 3
    assert sorted(tile_order(points)) == list(range(N))


@pytest.mark.parametrize("N", [4096, 4099])
def test_tiles_are_small(N):
    """The mean box of a tile would be a 64th of the square; sorted roughly it is a little more."""
    points = np.random.default_rng(0).random((N, 2)).astype(np.float32)
    order = tile_order(points)
    boxes = [np.ptp(points[order[start : start + TILE]], axis=0).prod() for start in range(0, N, TILE)]
    assert np.mean(boxes) < 2 / 64


@pytest.mark.slow
@pytest.mark.parametrize(("S", "gain"), [(2, 5), (4, 2)])
def test_most_distances_are_never_computed(S, gain):
    """Ten times FAISS at 4 bits and four times at 2, by the time of the thread."""
    import time

    import torch

    points, torch_threads = heavy_tailed(8, 16384, S), torch.get_num_threads()
    padded = np.zeros((16384, 8), np.float32)
    padded[:, :S] = points[0]
    torch.set_num_threads(1)
    kmeans(points[:1], 8, 1, 0)
    taken = []
    for search in (lambda: kmeans(points, 8, 25, 0), lambda: of_faiss(padded, 8, 25, 0)):
        begun = time.thread_time()
        search()
        taken.append(time.thread_time() - begun)
    torch.set_num_threads(torch_threads)
    assert taken[0] / 8 * gain < taken[1]
