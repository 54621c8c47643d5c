"""Codebooks: the centroids of one layer's keys or values, and the set of them a model needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pqkv.codec.geometry import code_bits
from pqkv.codec.nearest import NearestCentroids
from pqkv.errors import CodebookError


@dataclass(frozen=True, slots=True)
class Codebook:
    """Centroids (H, M, C, d_sub) of one layer's keys or values; H is 1 (shared by the heads) or num_kv_heads.

    `channels` (H, D) int64 says which channels a subspace holds: element m * d_sub + s of the coded order is channel
    `channels[h, m * d_sub + s]`; None is the natural order. `weights` (H, D), in coded order, is the metric of the
    nearest centroid: squared differences count times weights squared; None is Euclidean. Neither costs anything when
    attention reads the codes: tables are built from the query in coded order, and weights only decide codes.

    `rotation` (H, D, D), orthogonal, in place of `channels`: codes stand for rotation @ (weights * vector), the weights
    then in natural order (OPQ, Ge et al. 2013). It costs a product for every vector coded and every query.
    """

    centroids: Tensor
    channels: Tensor | None = None
    weights: Tensor | None = None
    rotation: Tensor | None = None
    # laid out for the search when first encoded with, per dtype
    _search: dict[torch.dtype, NearestCentroids] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def num_subspaces(self) -> int:
        """M: codes per vector."""
        return self.centroids.shape[1]

    @property
    def nbits(self) -> int:
        """Width of one code; C = 2**nbits."""
        return (self.centroids.shape[2] - 1).bit_length()

    @property
    def head_dim(self) -> int:
        """D = M * d_sub."""
        return self.centroids.shape[1] * self.centroids.shape[3]

    @property
    def code_bits(self) -> float:
        """Marginal bits per element."""
        return code_bits(self.num_subspaces, self.nbits, self.head_dim)

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors (B, Hkv, T, D) -> codes (B, Hkv, T, M) int16, each the nearest centroid of its subspace.

        Raises `CodebookError` for vectors of another shape than it was trained for.
        """
        B, Hkv, T, D = vectors.shape
        H, M, _, d_sub = self.centroids.shape
        if H not in (1, Hkv) or M * d_sub != D:
            raise CodebookError(f"a codebook for {H} heads of {M * d_sub} elements cannot encode {Hkv} heads of {D}")
        dtype = torch.float64 if vectors.dtype == torch.float64 else torch.float32
        flat = vectors.to(dtype).transpose(0, 1).reshape(H, -1, M * d_sub)  # H = 1 pools the heads
        if self.channels is not None:
            flat = flat.gather(-1, self.channels[:, None].expand_as(flat))
        if self.weights is not None:
            flat = flat * self.weights.to(dtype)[:, None]
        if self.rotation is not None:
            flat = flat @ self.rotation.to(dtype).mT
        return self._searcher(dtype)(flat).reshape(Hkv, B, T, M).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (B, Hkv, T, M) -> vectors (B, Hkv, T, D) in the centroids' dtype."""
        Hkv, M = codes.shape[1], self.num_subspaces
        H, _, C, d_sub = self.centroids.shape
        head = torch.arange(Hkv, device=codes.device) % H  # H = 1 maps every head to 0
        rows = (head[:, None] * M + torch.arange(M, device=codes.device)) * C  # (Hkv, M)
        index = codes.long() + rows[None, :, None]  # (B, Hkv, T, M)
        table = self.centroids.reshape(H * M * C, d_sub)
        coded = table.index_select(0, index.reshape(-1)).reshape(*codes.shape[:3], M * d_sub)
        if self.rotation is not None:
            coded = coded @ self.rotation.to(coded.dtype)  # (H, D, D) against (B, Hkv, T, D)
            return coded if self.weights is None else coded / self.weights.to(coded.dtype)[:, None]
        if self.channels is None:
            return coded
        return coded.gather(-1, self.channels.argsort(-1)[None, :, None].expand_as(coded))

    def _searcher(self, dtype: torch.dtype) -> NearestCentroids:
        if dtype not in self._search:
            centroids = self.centroids.to(dtype)
            if self.weights is not None and self.rotation is None:
                H, M, _, d_sub = centroids.shape
                centroids = centroids * self.weights.to(dtype).reshape(H, M, 1, d_sub)
            self._search[dtype] = NearestCentroids(centroids)
        return self._search[dtype]

    def map(self, change: Callable[[Tensor], Tensor]) -> Codebook:
        """The codebook with `change` applied to each of its tensors; itself if nothing changes."""
        centroids = change(self.centroids)
        before = (self.channels, self.weights, self.rotation)
        after = tuple(None if part is None else change(part) for part in before)
        if centroids is self.centroids and all(new is old for new, old in zip(after, before, strict=True)):
            return self
        return type(self)(centroids, *after)

    def without_rotation(self) -> Codebook:
        """The codebook of vectors that were turned already; itself if it does not rotate."""
        if self.rotation is None:
            return self
        # the type stays: a subclass may deal the codes out differently
        return type(self)(self.centroids)

    def nbytes(self) -> int:
        """Bytes of its tensors. What encoding lays out for its search, about as much again, is not part of a cache that
        is read.
        """
        tensors = (self.centroids, self.channels, self.weights, self.rotation)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


@dataclass(frozen=True, slots=True)
class CodebookSet:
    """A key and a value codebook per layer."""

    keys: tuple[Codebook, ...]
    values: tuple[Codebook, ...]

    @property
    def num_layers(self) -> int:
        """Layers served."""
        return len(self.keys)

    @property
    def code_bits(self) -> float:
        """Marginal bits per element, mean over keys and values of all layers."""
        books = (*self.keys, *self.values)
        return sum(book.code_bits for book in books) / len(books)

    def nbytes(self) -> int:
        """Bytes of all centroids as they are held; a codebook shared by layers counts once."""
        books = {book.centroids.data_ptr(): book for book in (*self.keys, *self.values)}
        return sum(book.nbytes() for book in books.values())

    def map(self, change: Callable[[Codebook], Codebook]) -> CodebookSet:
        """The set with `change` applied to every codebook."""
        return replace(self, keys=tuple(map(change, self.keys)), values=tuple(map(change, self.values)))
