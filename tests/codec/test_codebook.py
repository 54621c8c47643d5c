import numpy as np
import pytest
import torch

from pqkv.codec import Codebook, CodebookSet

HEADS = 3


def make_book(H, *, M=4, C=16, d_sub=2, channels=True, weights=True, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    D = M * d_sub
    return Codebook(
        torch.randn(H, M, C, d_sub, generator=generator, dtype=torch.float64).to(dtype),
        torch.stack([torch.randperm(D, generator=generator) for _ in range(H)]) if channels else None,
        (torch.rand(H, D, generator=generator, dtype=torch.float64) * 5 + 0.01).to(dtype) if weights else None,
    )


def brute_force(book, vectors):
    """Codes and decoded vectors, one element at a time in float64."""
    centroids, x = book.centroids.double().numpy(), vectors.double().numpy()
    H, M, C, d_sub = centroids.shape
    B, heads, T, D = x.shape
    order = np.tile(np.arange(D), (H, 1)) if book.channels is None else book.channels.numpy()
    weights = np.ones((H, D)) if book.weights is None else book.weights.double().numpy()
    codes, decoded = np.zeros((B, heads, T, M), dtype=int), np.zeros_like(x)
    for b in range(B):
        for head in range(heads):
            h = head if H > 1 else 0
            for t in range(T):
                for m in range(M):
                    elements = range(m * d_sub, (m + 1) * d_sub)
                    mine = [order[h, e] for e in elements]
                    costs = [
                        sum(
                            (weights[h, e] * (x[b, head, t, channel] - centroids[h, m, c, s])) ** 2
                            for s, (e, channel) in enumerate(zip(elements, mine, strict=True))
                        )
                        for c in range(C)
                    ]
                    best = codes[b, head, t, m] = int(np.argmin(costs))
                    decoded[b, head, t, mine] = centroids[h, m, best]
    return codes, decoded


parts = pytest.mark.parametrize(("channels", "weights"), [(False, False), (True, False), (False, True), (True, True)])
heads = pytest.mark.parametrize("H", [1, HEADS])


@heads
@parts
def test_codes_and_decoded_vectors_equal_brute_force(H, channels, weights):
    book = make_book(H, channels=channels, weights=weights)
    vectors = torch.randn(2, HEADS, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    codes, decoded = brute_force(book, vectors)
    found = book.encode(vectors)
    assert found.dtype == torch.int16
    np.testing.assert_array_equal(found.numpy(), codes)
    np.testing.assert_array_equal(book.decode(found).numpy(), decoded)


@heads
@parts
def test_a_vector_made_of_centroids_comes_back_as_it_was(H, channels, weights):
    book = make_book(H, channels=channels, weights=weights)
    codes = torch.randint(0, 16, (2, HEADS, 7, 4), generator=torch.Generator().manual_seed(2))
    vectors = book.decode(codes)
    assert torch.equal(book.encode(vectors).long(), codes)
    assert torch.equal(book.decode(book.encode(vectors)), vectors)


def test_weights_change_which_centroid_is_nearest():
    weighted, plain = make_book(1, channels=False), make_book(1, channels=False, weights=False)
    vectors = torch.randn(1, HEADS, 50, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert not torch.equal(weighted.encode(vectors), plain.encode(vectors))


def test_each_head_is_coded_with_its_own_centroids():
    book = make_book(HEADS)
    vectors = torch.randn(1, HEADS, 9, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for h in range(HEADS):
        alone = book.map(lambda tensor, h=h: tensor[h : h + 1])
        assert torch.equal(alone.encode(vectors[:, h : h + 1]), book.encode(vectors)[:, h : h + 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_vectors_are_coded_as_their_float32_values(dtype):
    book = make_book(HEADS, dtype=torch.float32)
    vectors = torch.randn(2, HEADS, 9, 8, generator=torch.Generator().manual_seed(5)).to(dtype)
    assert torch.equal(book.encode(vectors), book.encode(vectors.float()))


def test_no_tokens_have_no_codes():
    book = make_book(HEADS)
    codes = book.encode(torch.empty(2, HEADS, 0, 8))
    assert codes.shape == (2, HEADS, 0, 4)
    assert book.decode(codes).shape == (2, HEADS, 0, 8)


@pytest.mark.parametrize(("C", "nbits"), [(2, 1), (16, 4), (256, 8), (4096, 12)])
def test_a_code_has_as_many_bits_as_its_centroids_need(C, nbits):
    book = make_book(1, M=2, C=C)
    assert (book.nbits, book.num_subspaces, book.head_dim) == (nbits, 2, 4)
    assert book.code_bits == 2 * nbits / 4


def test_codes_above_255_survive():
    book = make_book(1, M=2, C=4096, channels=False, weights=False)
    codes = torch.tensor([[[[4095, 256], [0, 2048]]]])
    assert torch.equal(book.encode(book.decode(codes)).long(), codes)


def test_bytes_count_every_tensor_and_a_shared_codebook_once():
    book, other = make_book(2), make_book(2, channels=False, weights=False)
    assert book.nbytes() == 8 * (2 * 4 * 16 * 2 + 2 * 8 + 2 * 8)
    assert CodebookSet((book, book), (other, other)).nbytes() == book.nbytes() + other.nbytes()
    assert CodebookSet((book, make_book(2)), (other, other)).nbytes() == 2 * book.nbytes() + other.nbytes()
    assert CodebookSet((book, book), (other, other)).code_bits == 2.0
