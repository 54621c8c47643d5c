"""What codes stand for, at attention time: the query that coded keys meet, and the turn of values.

Coded keys stand for F (k - mean(p)), exact ones for themselves: a step has two queries, q for exact keys and F^-T q for
codes, and what the mean brings to a score is a function of query and position (`pqkv.kernels.CodedQuery`). Values lie
turned in the whole layer, exact parts and all, and what comes out of attention is turned back: one product for every
new value and one for every query head, and kernels never hear of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from pqkv.codec import Codebook
from pqkv.codec.rotary import Rotary
from pqkv.codec.transforms import turned_by_hadamard
from pqkv.kernels import CodedQuery
from pqkv.kernels.cpu.coded_query import QueryParts
from pqkv.kernels.cpu.hadamard import serves_rows, turned_rows

_FEW = 4  # rows that one pass over the inverse is made for; with more, products of matrices are faster


class _Parts(NamedTuple):
    """What queries are multiplied by: the inverse (Hkv, D, D), or (0, D, D) where codes stand in the vectors' own
    frame, the conjugate (Hkv, P, 2) of the mean that turns and the mean that stands still, (Hkv, D) or (0, D).
    """

    inverse: Tensor
    mean: Tensor
    still: Tensor


class CodedQueries:
    """Makes the query that the codes of a book meet: q times F^-1, and its phasors, q times the mean pair by pair.

    Coded token j of a sequence stands at position first + j, `first` the sinks in front of it, and positions count real
    tokens: padding is never cached. The phasors' origin is the first coded token. Of a pair (x, y) of q and (u, v) of
    R_first m, q . R_p m has (x u + y v) cos(theta j) + (y u - x v) sin(theta j): x + iy times the conjugate of u + iv.
    """

    def __init__(self, book: Codebook, first: int, num_kv_heads: int, device: torch.device) -> None:
        with torch.inference_mode(False):  # what it is made of outlives the mode of the first step
            self._book = book.map(lambda part: part.to(device))
        self._first, self._heads = first, num_kv_heads
        self.frequencies = book.frequencies if book.turning is not None else ()
        if book.mean is not None:  # a pair that does not turn: q.mean, and nothing of the sine
            self.frequencies = (0.0, *self.frequencies)
        self._as: dict[torch.dtype, _Parts] = {}
        self._for_few: QueryParts | None = None  # the same memory as a kernel takes it

    @classmethod
    def of(cls, book: Codebook, first: int, num_kv_heads: int, device: torch.device) -> CodedQueries | None:
        """None where codes stand for the keys themselves."""
        if all(part is None for part in (book.rotation, book.back, book.mean, book.turning)):
            return None
        return cls(book, first, num_kv_heads, device)

    def __call__(self, query: Tensor, skipped: Sequence[int] | None = None) -> CodedQuery:
        """What stands in the place of query (B, T, Hq, D), in float32, or float64 from float64. Where a window leaves
        out the first `skipped[b]` coded tokens of sequence b, phasors begin at the first that is left.
        """
        made = self._from_first(query)
        if not self.frequencies or not skipped or not any(skipped):
            return made
        return replace(made, phasors=_advanced(made.phasors, self.frequencies, skipped))

    def _from_first(self, query: Tensor) -> CodedQuery:
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        parts = self._in(dtype)
        B, T, Hq, D = query.shape
        if query.device.type == "cpu" and dtype == torch.float32 and B * T <= _FEW:
            if self._for_few is None:
                self._for_few = QueryParts(*parts)
            turned, phasors = self._for_few.times(query.reshape(B * T, Hq, D))
            return CodedQuery(turned.reshape(B, T, Hq, D), phasors.reshape(B, T, Hq, -1, 2), self.frequencies)
        grouped = query.to(dtype).reshape(B * T, self._heads, -1, D)  # (B T, Hkv, G, D)
        turned = _by_head(grouped, parts.inverse.to(dtype)) if len(parts.inverse) else grouped
        P = parts.mean.shape[1]
        pairs = torch.complex(grouped[..., :P], grouped[..., P : 2 * P]) * torch.view_as_complex(parts.mean)[:, None]
        phasors = torch.view_as_real(pairs)
        if len(parts.still):
            still = _by_head(grouped, parts.still[..., None])[..., None]
            phasors = torch.cat([torch.cat([still, torch.zeros_like(still)], -1), phasors], -2)
        return CodedQuery(turned.reshape(B, T, Hq, D), phasors.reshape(B, T, Hq, -1, 2), self.frequencies)

    def nbytes(self) -> int:
        """Bytes of what was made of the book."""
        own = {part.data_ptr() for part in self._book.tensors().values()}
        made = [part for parts in self._as.values() for part in parts if part.data_ptr() not in own]
        return sum(part.numel() * part.element_size() for part in made)

    def _in(self, dtype: torch.dtype) -> _Parts:
        """Computed in double precision. On a CPU an inverse of 16 bits is taken as it is."""
        if dtype not in self._as:
            book = self._book
            none = book.centroids.new_empty((0, book.head_dim), dtype=dtype)
            with torch.inference_mode(False):
                self._as[dtype] = _Parts(
                    _inverse(book, self._heads, dtype),
                    _conjugate(book, self._first, self._heads).to(dtype),
                    none if book.mean is None else book.mean.to(dtype).contiguous(),
                )
        return self._as[dtype]


def _advanced(phasors: Tensor, frequencies: tuple[float, ...], skipped: Sequence[int]) -> Tensor:
    """Phasors (B, T, Hq, P, 2) whose origin is moved by `skipped[b]` tokens: (x, y) brings x cos(theta j) +
    y sin(theta j), so each turns by theta times that, backwards.
    """
    device = phasors.device
    angles = torch.tensor(skipped, dtype=torch.float64)[:, None] * torch.tensor(frequencies, dtype=torch.float64)
    turn = torch.polar(torch.ones_like(angles), -angles).to(device)[:, None, None]
    moved = torch.view_as_complex(phasors.double().contiguous()) * turn
    return torch.view_as_real(moved).to(phasors.dtype)


def _by_head(grouped: Tensor, matrix: Tensor) -> Tensor:
    """(N, Hkv, G, D) times (Hkv, D, K), head by head: (N, Hkv, G, K)."""
    N = len(grouped)
    if N == 1:  # nothing to put in order: a step of one sequence is short
        return (grouped[0] @ matrix)[None]
    return (grouped.transpose(0, 1).flatten(1, 2) @ matrix).unflatten(1, (N, -1)).transpose(0, 1)


def _inverse(book: Codebook, heads: int, dtype: torch.dtype) -> Tensor:
    """(Hkv, D, D): with it a row vector q becomes F^-T q. (0, D, D) where it is q."""
    if book.back is not None:
        kept = book.back.dtype == torch.float16 and book.back.device.type == "cpu"  # where a pass reads it as it is
        return (book.back if kept else book.back.to(dtype)).contiguous()
    if book.rotation is None:
        return torch.empty((0, book.head_dim, book.head_dim), dtype=dtype, device=book.centroids.device)
    inverse = book.rotation.double().mT
    if book.weights is not None:
        inverse = inverse / book.weights.double()[:, :, None]
    return inverse.expand(heads, -1, -1).to(dtype).contiguous()


def _conjugate(book: Codebook, first: int, heads: int) -> Tensor:
    """(Hkv, P, 2) float64: real and imaginary part of the mean that turns, as it stands at `first`, conjugate."""
    if book.turning is None:
        return torch.empty((heads, 0, 2), dtype=torch.float64, device=book.centroids.device)
    rotary = Rotary(torch.tensor(book.frequencies, dtype=torch.float64, device=book.turning.device))
    at = torch.tensor([first], device=book.turning.device)
    turned = rotary.turn(book.turning.double()[:, None], at)[:, 0]  # (Hkv, 2 P)
    return torch.stack([turned[:, : rotary.pairs], -turned[:, rotary.pairs :]], -1)


@dataclass(frozen=True, slots=True)
class ValueTurn:
    """F of values: a Hadamard matrix, or rotation diag(weights). It holds the codebook's own tensors, (H, D, D) and
    (H, D), which are counted there.
    """

    rotation: Tensor | None
    weights: Tensor | None

    @classmethod
    def of(cls, book: Codebook, device: torch.device) -> ValueTurn | None:
        """None where codes stand for the values themselves."""
        if book.hadamard:
            return cls(None, None)
        rotation = book.rotation if book.frame is None else book.frame
        if rotation is None:
            return None
        return cls(rotation.to(device), None if book.weights is None else book.weights.to(device))

    def apply(self, values: Tensor) -> Tensor:
        """F v of values (B, Hkv, T, D), in their dtype; half precision is taken to float32 for the product."""
        wide = _wide(values)
        if self.rotation is None:
            return _turned(wide).to(values.dtype)
        if self.weights is not None:
            wide = wide * self.weights.to(wide.dtype)[:, None]
        return (wide @ self.rotation.to(wide.dtype).mT).to(values.dtype)

    def undo(self, out: Tensor, num_kv_heads: int) -> Tensor:
        """F^-1 of what attention made of them, (B, T, Hq, D), each query head with its KV head."""
        wide = _wide(out)
        if self.rotation is None:
            return _turned(wide).to(out.dtype)
        grouped = wide.unflatten(2, (num_kv_heads, -1)).movedim(2, 1).flatten(2, 3)  # (B, Hkv, T * G, D)
        turned = grouped @ self.rotation.to(wide.dtype)
        if self.weights is not None:
            turned = turned / self.weights.to(wide.dtype)[:, None]
        return turned.unflatten(2, (out.shape[1], -1)).movedim(1, 2).flatten(2, 3).to(out.dtype)


def _turned(vectors: Tensor) -> Tensor:
    return turned_rows(vectors) if serves_rows(vectors) else turned_by_hadamard(vectors)


def _wide(vectors: Tensor) -> Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()
