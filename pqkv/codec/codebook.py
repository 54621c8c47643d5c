"""Codebooks: the centroids of one layer's keys or values, and the set of them a model needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pqkv.codec.gains import gain_bytes, gains
from pqkv.codec.geometry import code_bits
from pqkv.codec.nearest import NearestCentroids
from pqkv.codec.rotary import Rotary
from pqkv.codec.transforms import turned_by_hadamard
from pqkv.errors import CodebookError


class Coded(NamedTuple):
    """What is kept of vectors (B, Hkv, T, D): codes (B, Hkv, T, M) int16, and gains (B, Hkv, T) uint8 or None."""

    codes: Tensor
    gains: Tensor | None


@dataclass(frozen=True, slots=True)
class Codebook:
    """Centroids (H, M, C, d_sub) of one layer's keys or values; H is 1 (shared by the heads) or num_kv_heads. Of int8
    they have `scales` (H, M, d_sub).

    A vector x at position p stands for y = F (x - mean - R_p turning), and codes for y, or where there is a
    `middle_gain` (Hkv,) for y over its gain, a byte on a log scale. F is a `frame` (Hkv, D, D) with its inverse `back`,
    or a Hadamard matrix, or the identity. Attention reads such codes with a query of its own and a bias (keys), or
    turns what comes out (values); see `pqkv.cache.turns`. `mean` (Hkv, D) stands still; `turning` (Hkv, R) turns with
    the position in pairs (i, i + R/2), as rotary embedding of `frequencies` (R/2) does.

    `channels` (H, D) int64 says which channels of y a subspace holds: element m * d_sub + s of the coded order is
    channel `channels[h, m * d_sub + s]`; None is the natural order. `weights` (H, D), in coded order, is the metric of
    the nearest centroid: squared differences count times weights squared; None is Euclidean. Neither costs anything
    when attention reads the codes: tables are built from the query in coded order, and weights only decide codes.

    `rotation` (H, D, D), orthogonal, in place of `channels`: codes stand for rotation @ (weights * vector), the weights
    then in natural order (OPQ, Ge et al. 2013). It is F in two parts, as files before version 4 hold it.
    """

    centroids: Tensor
    channels: Tensor | None = None
    weights: Tensor | None = None
    rotation: Tensor | None = None
    scales: Tensor | None = None
    frame: Tensor | None = None
    back: Tensor | None = None
    mean: Tensor | None = None
    turning: Tensor | None = None
    middle_gain: Tensor | None = None
    frequencies: tuple[float, ...] = ()
    hadamard: bool = False
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
        """Marginal bits per element, a gain's byte included."""
        bits = code_bits(self.num_subspaces, self.nbits, self.head_dim)
        return bits if self.middle_gain is None else bits + 8 / self.head_dim

    @property
    def heads(self) -> int:
        """KV heads that it is for: 1 where it knows no head apart."""
        return max(len(part) for name in _PER_HEAD if (part := getattr(self, name)) is not None)

    @property
    def stands_for_itself(self) -> bool:
        """Whether what is searched for is the vector: no mean, no turn but a `rotation`, no gain."""
        parts = (self.frame, self.mean, self.turning, self.middle_gain)
        return not self.hadamard and all(part is None for part in parts)

    def float_centroids(self) -> Tensor:
        """Centroids as numbers."""
        return self.centroids if self.scales is None else self.centroids.float() * self.scales[:, :, None]

    def encode(self, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        """The codes of `code`."""
        return self.code(vectors, positions).codes

    def code(self, vectors: Tensor, positions: Tensor | None = None) -> Coded:
        """Vectors (B, Hkv, T, D) at positions (T,), which only a mean that turns asks for -> codes, each the nearest
        centroid of its subspace, and gains.

        Raises `CodebookError` for vectors of another shape than it was trained for.
        """
        B, Hkv, T, D = vectors.shape
        H, M, _, d_sub = self.centroids.shape
        if H not in (1, Hkv) or M * d_sub != D or self.heads not in (1, Hkv):
            raise CodebookError(f"a codebook for {self.heads} heads of {M * d_sub} elements cannot encode {Hkv} of {D}")
        dtype = torch.float64 if vectors.dtype == torch.float64 else torch.float32
        framed, stored = self.framed(vectors.to(dtype), positions)
        flat = framed.transpose(0, 1).reshape(H, -1, M * d_sub)  # H = 1 pools the heads
        if self.channels is not None:
            flat = flat.gather(-1, self.channels[:, None].expand_as(flat))
        if self.weights is not None:
            flat = flat * self.weights.to(dtype)[:, None]
        if self.rotation is not None:
            flat = flat @ self.rotation.to(dtype).mT
        return Coded(self._searcher(dtype)(flat).reshape(Hkv, B, T, M).transpose(0, 1), stored)

    def framed(self, vectors: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """What is searched for of vectors (B, Hkv, T, D), and its gains (B, Hkv, T) uint8: see the class."""
        y = vectors
        if self.mean is not None:
            y = y - self.mean.to(y.dtype)[:, None]
        if self.turning is not None:
            y = y - self._turned(positions, vectors.shape[2]).to(y.dtype)
        if self.frame is not None:
            y = y @ self.frame.to(y.dtype).mT
        if self.hadamard:
            y = turned_by_hadamard(y)
        if self.middle_gain is None:
            return y, None
        stored = gain_bytes(y, self.middle_gain)
        return y / gains(stored, self.middle_gain, y.dtype)[..., None], stored

    def decode(self, codes: Tensor, stored: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """Codes (B, Hkv, T, M) with gains -> vectors (B, Hkv, T, D) in the centroids' dtype."""
        Hkv, M = codes.shape[1], self.num_subspaces
        H, _, C, d_sub = self.centroids.shape
        head = torch.arange(Hkv, device=codes.device) % H  # H = 1 maps every head to 0
        rows = (head[:, None] * M + torch.arange(M, device=codes.device)) * C  # (Hkv, M)
        index = codes.long() + rows[None, :, None]  # (B, Hkv, T, M)
        table = self.float_centroids().reshape(H * M * C, d_sub)
        coded = table.index_select(0, index.reshape(-1)).reshape(*codes.shape[:3], M * d_sub)
        if self.rotation is not None:
            return self.undone(coded)
        if self.channels is not None:
            coded = coded.gather(-1, self.channels.argsort(-1)[None, :, None].expand_as(coded))
        if stored is not None:
            coded = coded * self.gain_of(stored, coded.dtype)[..., None]
        coded = self.undone(coded)
        if self.mean is not None:
            coded = coded + self.mean.to(coded.dtype)[:, None]
        if self.turning is not None:
            coded = coded + self._turned(positions, codes.shape[2]).to(coded.dtype)
        return coded

    def undone(self, framed: Tensor) -> Tensor:
        """F^-1 of rows (..., H or 1, T, D) that F turned, means aside."""
        if self.rotation is not None:
            turned = framed @ self.rotation.to(framed.dtype)  # (H, D, D) against (B, Hkv, T, D)
            return turned if self.weights is None else turned / self.weights.to(turned.dtype)[:, None]
        turned = turned_by_hadamard(framed) if self.hadamard else framed
        return turned if self.back is None else turned @ self.back.to(turned.dtype).mT

    def gain_of(self, stored: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """What bytes (..., Hkv, T) stand for."""
        if self.middle_gain is None:
            raise CodebookError("a codebook without gains was given some")
        return gains(stored, self.middle_gain, dtype)

    def _turned(self, positions: Tensor | None, count: int) -> Tensor:
        """R_p turning (Hkv, T, D), 0 in the channels that do not turn."""
        assert self.turning is not None
        if positions is None or len(positions) != count:
            raise CodebookError("a codebook whose mean turns wants the position of every vector")
        rotary = Rotary(torch.tensor(self.frequencies, dtype=torch.float64, device=self.turning.device))
        turned = rotary.turn(self.turning[:, None].expand(-1, count, -1), positions)
        return torch.nn.functional.pad(turned, (0, self.head_dim - turned.shape[-1]))

    def _searcher(self, dtype: torch.dtype) -> NearestCentroids:
        if dtype not in self._search:
            centroids = self.float_centroids().to(dtype)
            if self.weights is not None and self.rotation is None:
                H, M, _, d_sub = centroids.shape
                centroids = centroids * self.weights.to(dtype).reshape(H, M, 1, d_sub)
            self._search[dtype] = NearestCentroids(centroids)
        return self._search[dtype]

    def tensors(self) -> dict[str, Tensor]:
        """Those that it has, by the names of their fields."""
        return {name: part for name in TENSORS if (part := getattr(self, name)) is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Codebook:
        """The codebook with `change` applied to each of its tensors; itself if nothing changes."""
        before = self.tensors()
        after = {name: change(tensor) for name, tensor in before.items()}
        if all(after[name] is tensor for name, tensor in before.items()):
            return self
        # names of fields are strings here, so mypy holds every tensor to the types of all fields, `hadamard` among them
        return replace(self, **after)  # type: ignore[arg-type]

    def without_turn(self) -> Codebook:
        """The codebook of vectors that were turned already; itself if it does not turn."""
        if self.rotation is None and self.frame is None and not self.hadamard:
            return self
        weights = self.weights if self.rotation is None else None  # weights are a part of that turn
        # the type stays: a subclass may deal the codes out differently
        return replace(self, rotation=None, weights=weights, frame=None, back=None, hadamard=False)

    def nbytes(self) -> int:
        """Bytes of its tensors. What encoding lays out for its search, about as much again, is not part of a cache that
        is read.
        """
        return sum(map(held_bytes, self.tensors().values()))


_PER_HEAD = ("centroids", "frame", "mean", "turning", "middle_gain")
TENSORS = (
    "centroids", "channels", "weights", "rotation", "scales", "frame", "back", "mean", "turning", "middle_gain",
)  # fmt: skip


def held_bytes(tensor: Tensor) -> int:
    """Bytes that a tensor takes in memory: what is repeated by a stride of 0 is there once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else min(size, 1)
    return count * tensor.element_size()


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
        """Bytes of all tensors as they are held; one that several codebooks share counts once."""
        tensors = [tensor for book in (*self.keys, *self.values) for tensor in book.tensors().values()]
        return sum(held_bytes(tensor) for tensor in {tensor.data_ptr(): tensor for tensor in tensors}.values())

    def map(self, change: Callable[[Codebook], Codebook]) -> CodebookSet:
        """The set with `change` applied to every codebook."""
        return replace(self, keys=tuple(map(change, self.keys)), values=tuple(map(change, self.values)))
