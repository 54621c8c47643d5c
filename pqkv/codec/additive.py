"""Additive codes: a vector is the sum of one centroid of each of several codebooks (Babenko and Lempitsky, CVPR 2014).

At the same bits a sub-vector is `stages` times as long as one of product codes. No kernel serves them: a table of query
and centroids would do, but codes are searched for, not looked up, and the lab has them to say what longer sub-vectors
could gain.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pqkv.codec.kmeans import kmeans

_BEAM = 16  # sums that a search keeps after every codebook
_ROUNDS = 4  # of search and least squares after the codebooks were learnt one after another
_LEARNT_FROM = 8192  # points of these rounds, with a quarter of the beam
_RIDGE = 1e-3  # a centroid that no point chose stays where it is
_TILE = 1 << 22  # sums held against each other at once


class AdditiveCodebook:
    """Centroids (H, G, S, C, d): S codebooks for each of G sub-vectors of d channels."""

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids

    @property
    def nbits(self) -> int:
        """Width of one code."""
        return (self.centroids.shape[3] - 1).bit_length()

    def encode(self, vectors: Tensor) -> Tensor:
        """(B, H, T, G * d) -> codes (B, H, T, G * S) int16, the S of a sub-vector side by side."""
        H, G, S, _, d = self.centroids.shape
        B, T = vectors.shape[0], vectors.shape[2]
        points = vectors.unflatten(-1, (G, d)).permute(1, 3, 0, 2, 4).reshape(H * G, B * T, d)
        books = self.centroids.flatten(0, 1).to(vectors.dtype)
        found = torch.stack([search(x, book, _BEAM) for x, book in zip(points, books, strict=True)])
        return found.view(H, G, B, T, S).permute(2, 0, 3, 1, 4).flatten(3).to(torch.int16)

    def decode(self, codes: Tensor) -> Tensor:
        """(B, H, T, G * S) -> (B, H, T, G * d)."""
        H, G, S, _, _ = self.centroids.shape
        heads, groups, stages = (torch.arange(n, device=codes.device) for n in (H, G, S))
        picked = self.centroids[heads[:, None, None, None], groups[:, None], stages, codes.long().unflatten(-1, (G, S))]
        return picked.sum(-2).flatten(3)


def search(points: Tensor, books: Tensor, beam: int) -> Tensor:
    """(N, d) and books (S, C, d) -> codes (N, S) of the nearest sum that a beam search finds: of every codebook in
    turn, the `beam` sums that are nearest so far.
    """
    _, C, d = books.shape
    tile = max(1, _TILE // (beam * C))
    found = []
    for x in points.split(tile):
        codes, rests = x.new_zeros(len(x), 1, 0, dtype=torch.int64), x[:, None]  # (n, b, s), (n, b, d)
        for book in books:
            # |rest - c|^2 less |x|^2 = |rest|^2 - 2 rest.c + |c|^2; a beam's sums differ in |rest| too
            far = rests.square().sum(-1, keepdim=True) - 2 * rests @ book.mT + book.square().sum(-1)  # (n, b, C)
            best = far.flatten(1).topk(min(beam, far[0].numel()), dim=-1, largest=False).indices
            which, code = best // C, best % C
            codes = torch.cat([codes.gather(1, which[..., None].expand(-1, -1, codes.shape[-1])), code[..., None]], -1)
            rests = rests.gather(1, which[..., None].expand(-1, -1, d)) - book[code]
        nearest = rests.square().sum(-1).argmin(-1)
        found.append(codes[torch.arange(len(x)), nearest])
    return torch.cat(found)


def fit(points: Tensor, nbits: int, stages: int, iterations: int, seed: int) -> Tensor:
    """(P, N, d) -> (P, S, C, d): k-means of the points, of what it leaves, and so on; then a few rounds of search and
    least squares over all codebooks at once.
    """
    rest, books = points.contiguous(), []
    for _ in range(stages):
        book = torch.from_numpy(kmeans(np.ascontiguousarray(rest.numpy()), nbits, iterations, seed))
        nearest = torch.stack([torch.cdist(x, c).argmin(-1) for x, c in zip(rest, book, strict=True)])
        rest = rest - torch.stack([c[i] for c, i in zip(book, nearest, strict=True)])
        books.append(book)
    found = torch.stack(books, 1)
    drawn = torch.randperm(points.shape[1], generator=torch.Generator().manual_seed(seed))[:_LEARNT_FROM]
    return torch.stack([_refined(x[drawn], book) for x, book in zip(points, found, strict=True)])


def _refined(points: Tensor, books: Tensor) -> Tensor:
    """Books (S, C, d) after rounds of search and least squares on points (N, d), the best of them all."""
    S, C, d = books.shape
    x = points.double()
    best, least = books, float("inf")
    for last in range(_ROUNDS, -1, -1):
        codes = search(points, books, _BEAM // 4)
        chosen = codes + C * torch.arange(S)  # rows of all centroids
        left = x - books.double().flatten(0, 1)[chosen].sum(1)
        if (error := float(left.square().sum())) < least:
            best, least = books, error
        if not last:
            break
        gram = torch.zeros(S * C, S * C, dtype=torch.float64)
        pairs = (chosen[:, :, None] * (S * C) + chosen[:, None]).flatten()
        gram.view(-1).index_add_(0, pairs, torch.ones(len(pairs), dtype=torch.float64))
        right = torch.zeros(S * C, d, dtype=torch.float64)
        for s in range(S):
            right.index_add_(0, chosen[:, s], left)
        gram.diagonal().add_(_RIDGE)
        books = (books.double() + torch.linalg.solve(gram, right).view(S, C, d)).to(points.dtype)
    return best
