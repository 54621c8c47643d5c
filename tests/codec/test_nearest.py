import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.codec.nearest import nearest, nearest_by_product


def distances(vectors, centroids):
    """Squared distances (H, N, M, C) in float64, difference by difference."""
    H, M, _, d_sub = centroids.shape
    x = vectors.double().numpy().reshape(H, -1, M, 1, d_sub)
    c = centroids.double().numpy()[:, None]
    return ((x - c) ** 2).sum(-1)


def arg_min(vectors, centroids):
    return distances(vectors, centroids).argmin(-1)  # the first of equal minima


@st.composite
def whole_numbers(draw):
    """Vectors and centroids of small whole numbers: float arithmetic on them is exact, and equal minima abound."""
    H, M = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    C, d_sub, N = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(0, 12))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    vectors = torch.from_numpy(random.integers(-2, 3, (H, N, M * d_sub))).to(dtype)
    return vectors, torch.from_numpy(random.integers(-2, 3, (H, M, C, d_sub))).to(dtype)


@pytest.mark.parametrize("form", [nearest, nearest_by_product])
@given(case=whole_numbers())
@settings(max_examples=60, deadline=None)
def test_the_first_of_equal_minima_is_taken(form, case):
    codes = form(*case)
    assert codes.dtype == torch.int16
    assert codes.shape == (case[1].shape[0], case[0].shape[1], case[1].shape[1])
    np.testing.assert_array_equal(codes.numpy(), arg_min(*case))


@pytest.mark.parametrize("form", [nearest, nearest_by_product])
@pytest.mark.parametrize(("M", "C", "d_sub"), [(32, 256, 2), (8, 64, 4), (2, 4096, 4), (1, 2, 16), (16, 1, 1)])
def test_float64_codes_equal_the_brute_force_arg_min(form, M, C, d_sub):
    generator = torch.Generator().manual_seed(M)
    vectors = torch.randn(2, 37, M * d_sub, generator=generator, dtype=torch.float64)
    centroids = torch.randn(2, M, C, d_sub, generator=generator, dtype=torch.float64)
    np.testing.assert_array_equal(form(vectors, centroids).numpy(), arg_min(vectors, centroids))


@pytest.mark.parametrize("form", [nearest, nearest_by_product])
def test_float32_codes_are_as_near_as_float32_can_tell(form):
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(2, 300, 64, generator=generator)
    centroids = torch.randn(2, 32, 256, 2, generator=generator)
    all_distances = distances(vectors, centroids)
    codes = form(vectors, centroids).long().numpy()
    found = np.take_along_axis(all_distances, codes[..., None], -1)[..., 0]
    assert (found - all_distances.min(-1)).max() < 1e-5
    assert (codes == all_distances.argmin(-1)).mean() > 0.999


def test_more_tokens_than_one_tile_of_the_tensor_form_hold_are_coded_alike():
    generator = torch.Generator().manual_seed(4)
    vectors = torch.randn(1, 2500, 4, generator=generator, dtype=torch.float64)
    centroids = torch.randn(1, 2, 16, 2, generator=generator, dtype=torch.float64)
    assert torch.equal(nearest(vectors, centroids), nearest_by_product(vectors, centroids))


def test_vectors_that_do_not_lie_one_after_another_are_coded_alike():
    wide = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(5))
    centroids = torch.randn(2, 4, 8, 2, generator=torch.Generator().manual_seed(6))
    vectors = wide.transpose(0, 1)
    assert torch.equal(nearest(vectors, centroids), nearest(vectors.contiguous(), centroids))
    strided = centroids.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(nearest(vectors, strided), nearest(vectors, centroids))


def test_vectors_of_a_model_that_records_gradients_are_coded_too():
    vectors = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(7), requires_grad=True)
    centroids = torch.randn(2, 4, 8, 2, generator=torch.Generator().manual_seed(8))
    assert torch.equal(nearest(vectors, centroids), nearest(vectors.detach(), centroids))
