"""Rotations: what a rotated codebook codes, and whether the learnt one is as good as FAISS's."""

import faiss
import pytest
import torch

from pqkv.codec import Codebook
from pqkv.codec.opq import opq_rotation
from pqkv.codec.training import relative_error, train_codebooks

DIM, M, NBITS = 16, 8, 5


def mixed(count=1500, seed=0):
    """Vectors (N, D) of very unequal variances, mixed by a random rotation: what OPQ is for."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(DIM, DIM, generator=generator)).Q
    return torch.randn(count, DIM, generator=generator) * torch.logspace(-1.5, 1, DIM) @ turn.mT + 0.5


def error(channels, vectors, unseen, weights=None):
    own = None if weights is None else [weights[None]]
    (book,) = train_codebooks(
        [vectors[None]], M, NBITS, scope="head", iterations=25, seed=0, channels=channels, weights=own
    )
    return book, relative_error(book, unseen[None])


@pytest.mark.parametrize("H", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_rotated_codebook_codes_the_turned_vector_and_turns_it_back(H, weighted):
    generator = torch.Generator().manual_seed(1)
    turn = torch.linalg.qr(torch.randn(H, 8, 8, generator=generator, dtype=torch.float64)).Q
    weights = torch.rand(H, 8, generator=generator, dtype=torch.float64) + 0.1 if weighted else None
    centroids = torch.randn(H, 4, 16, 2, generator=generator, dtype=torch.float64)
    vectors = torch.randn(2, 3, 5, 8, generator=generator, dtype=torch.float64)
    book, plain = Codebook(centroids, None, weights, turn), Codebook(centroids)
    codes = book.encode(vectors)
    for b in range(2):
        for h in range(3):
            own = h % H
            scale = torch.ones(8, dtype=torch.float64) if weights is None else weights[own]
            for t in range(5):
                turned = turn[own] @ (scale * vectors[b, h, t])
                nearest = [
                    int((centroids[own, m] - turned[2 * m : 2 * m + 2]).square().sum(-1).argmin()) for m in range(4)
                ]
                assert codes[b, h, t].tolist() == nearest
                stands_for = torch.cat([centroids[own, m, c] for m, c in enumerate(nearest)])
                assert torch.allclose(turn[own] @ (scale * book.decode(codes)[b, h, t]), stands_for, atol=1e-12)
    assert not torch.equal(codes, plain.encode(vectors))


def test_moving_a_rotated_codebook_moves_all_of_it():
    book = Codebook(torch.randn(1, 4, 4, 2), None, torch.rand(1, 8), torch.eye(8)[None])
    wide = book.map(lambda t: t.double())
    assert {part.dtype for part in (wide.centroids, wide.weights, wide.rotation)} == {torch.float64}
    assert book.map(lambda t: t) is book
    assert book.nbytes() == 4 * (4 * 4 * 2 + 8 + 64)


@pytest.mark.parametrize("seed", range(3))
def test_the_rotation_is_orthogonal_and_as_good_as_that_of_faiss(seed):
    vectors, unseen = mixed(seed=seed).split(1000)
    book, ours = error("opq", vectors, unseen)
    rotation = book.rotation[0].double()
    assert float((rotation @ rotation.mT - torch.eye(DIM)).abs().max()) < 1e-5
    theirs = faiss.OPQMatrix(DIM, M)
    quantizer = faiss.ProductQuantizer(DIM, M, NBITS)
    theirs.pq = quantizer
    theirs.train(vectors.numpy())
    turned = theirs.apply(vectors.numpy())
    quantizer.train(turned)
    restored = torch.from_numpy(
        theirs.reverse_transform(quantizer.decode(quantizer.compute_codes(theirs.apply(unseen.numpy()))))
    )
    faiss_error = float((restored - unseen).square().sum() / unseen.square().sum())
    assert ours < 1.05 * faiss_error
    assert ours < 0.6 * error("adjacent", vectors, unseen)[1]
    assert ours < error("balanced", vectors, unseen)[1]


def test_each_turn_of_the_alternation_helps():
    vectors = mixed()
    losses = []
    for rounds in (1, 4, 16):
        turned = vectors @ opq_rotation(vectors, M, NBITS, rounds=rounds, seed=0).mT
        losses.append(error("adjacent", turned, turned)[1])
    assert losses[0] > losses[1] > losses[2]


def test_a_rotation_under_weights_lowers_the_weighted_error():
    """The queries' metric decides where codes are spent: unweighted OPQ is worse under it."""
    vectors, unseen = mixed().split(1000)
    weights = torch.logspace(-1, 1, DIM)

    def loss(book):
        gap = (book.decode(book.encode(unseen[None, None]))[0, 0] - unseen) * weights
        return float(gap.square().sum())

    weighted, plain, balanced = (
        loss(error(channels, vectors, unseen, metric)[0])
        for channels, metric in (("opq", weights), ("opq", None), ("balanced", weights))
    )
    assert weighted < 0.7 * plain
    assert weighted < balanced
