"""What codes stand for, at attention time: the query that coded keys meet, and the turn of values.

Coded keys stand for F (k - mean(p)), exact ones for themselves: a step has two queries, q for exact keys and F^-T q for
codes, and what the mean brings to a score is a function of query and position (`pqkv.kernels.CodedQuery`). Values lie
turned in the whole layer, exact parts and all, and what comes out of attention is turned back: one product for every
new value and one for every query head, and kernels never hear of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pqkv.codec import Codebook
from pqkv.codec.rotary import Rotary
from pqkv.codec.transforms import turned_by_hadamard
from pqkv.kernels import CodedQuery


class CodedQueries:
    """Makes the query that the codes of a book meet: q times F^-1, and its phasors, q times the mean pair by pair.

    Coded token j of a sequence stands at position first + j, `first` the sinks in front of it, and positions count real
    tokens: padding is never cached. The phasors' origin is the first coded token. Of a pair (x, y) of q and (u, v) of
    R_first m, q . R_p m has (x u + y v) cos(theta j) + (y u - x v) sin(theta j): x + iy times the conjugate of u + iv.
    """

    def __init__(self, book: Codebook, first: int, num_kv_heads: int, device: torch.device) -> None:
        parts = {"inverse": _inverse(book, num_kv_heads)}
        self.frequencies = book.frequencies if book.turning is not None else ()
        if book.turning is not None:
            parts["mean"] = _conjugate(book, first)
        if book.mean is not None:  # a pair that does not turn: q.mean, and nothing of the sine
            parts["still"] = book.mean.double()[..., None]
            self.frequencies = (0.0, *self.frequencies)
        with torch.inference_mode(False):  # they outlive the mode of the first step
            self._parts = {name: part.to(device) for name, part in parts.items()}  # double precision
        self._as: dict[torch.dtype, dict[str, Tensor]] = {}

    @classmethod
    def of(cls, book: Codebook, first: int, num_kv_heads: int, device: torch.device) -> CodedQueries | None:
        """None where codes stand for the keys themselves."""
        if all(part is None for part in (book.rotation, book.back, book.mean, book.turning)):
            return None
        return cls(book, first, num_kv_heads, device)

    def __call__(self, query: Tensor) -> CodedQuery:
        """What stands in the place of query (B, T, Hq, D), in float32, or float64 from float64."""
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        parts = self._in(dtype)
        inverse = parts["inverse"]
        B, T, Hq, D = query.shape
        grouped = query.to(dtype).reshape(B * T, len(inverse), -1, D)  # (B T, Hkv, G, D)
        turned = _by_head(grouped, inverse).reshape(B, T, Hq, D)
        found = []
        if "still" in parts:
            still = _by_head(grouped, parts["still"]).reshape(B, T, Hq, 1, 1)
            found.append(torch.cat([still, torch.zeros_like(still)], -1))
        if "mean" in parts:
            P = parts["mean"].shape[-1]
            pairs = torch.complex(grouped[..., :P], grouped[..., P : 2 * P]) * parts["mean"]
            found.append(torch.view_as_real(pairs).reshape(B, T, Hq, P, 2))
        if not found:
            return CodedQuery(turned, turned.new_empty(B, T, Hq, 0, 2))
        return CodedQuery(turned, found[0] if len(found) == 1 else torch.cat(found, -2), self.frequencies)

    def nbytes(self) -> int:
        """Bytes of what was made of the book."""
        return sum(part.numel() * part.element_size() for parts in self._as.values() for part in parts.values())

    def _in(self, dtype: torch.dtype) -> dict[str, Tensor]:
        if dtype not in self._as:
            complexes = torch.complex128 if dtype == torch.float64 else torch.complex64
            with torch.inference_mode(False):
                self._as[dtype] = {
                    name: part.to(complexes if part.is_complex() else dtype) for name, part in self._parts.items()
                }
        return self._as[dtype]


def _by_head(grouped: Tensor, matrix: Tensor) -> Tensor:
    """(N, Hkv, G, D) times (Hkv, D, K), head by head: (N, Hkv, G, K)."""
    N = len(grouped)
    if N == 1:  # nothing to put in order: a step of one sequence is short
        return (grouped[0] @ matrix)[None]
    return (grouped.transpose(0, 1).flatten(1, 2) @ matrix).unflatten(1, (N, -1)).transpose(0, 1)


def _inverse(book: Codebook, heads: int) -> Tensor:
    """(Hkv, D, D) float64: with it a row vector q becomes F^-T q."""
    if book.back is not None:
        return book.back.double()
    if book.rotation is None:
        return torch.eye(book.head_dim, dtype=torch.float64, device=book.centroids.device).repeat(heads, 1, 1)
    inverse = book.rotation.double().mT
    if book.weights is not None:
        inverse = inverse / book.weights.double()[:, :, None]
    return inverse.expand(heads, -1, -1)


def _conjugate(book: Codebook, first: int) -> Tensor:
    """(Hkv, 1, P) complex128: the mean that turns, as it stands at position `first`, conjugate."""
    assert book.turning is not None
    rotary = Rotary(torch.tensor(book.frequencies, dtype=torch.float64, device=book.turning.device))
    at = torch.tensor([first], device=book.turning.device)
    turned = rotary.turn(book.turning.double()[:, None], at)  # (Hkv, 1, 2 P)
    return torch.complex(turned[..., : rotary.pairs], -turned[..., rotary.pairs :])


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
            return turned_by_hadamard(wide).to(values.dtype)
        if self.weights is not None:
            wide = wide * self.weights.to(wide.dtype)[:, None]
        return (wide @ self.rotation.to(wide.dtype).mT).to(values.dtype)

    def undo(self, out: Tensor, num_kv_heads: int) -> Tensor:
        """F^-1 of what attention made of them, (B, T, Hq, D), each query head with its KV head."""
        wide = _wide(out)
        if self.rotation is None:
            return turned_by_hadamard(wide).to(out.dtype)
        grouped = wide.unflatten(2, (num_kv_heads, -1)).movedim(2, 1).flatten(2, 3)  # (B, Hkv, T * G, D)
        turned = grouped @ self.rotation.to(wide.dtype)
        if self.weights is not None:
            turned = turned / self.weights.to(wide.dtype)[:, None]
        return turned.unflatten(2, (out.shape[1], -1)).movedim(1, 2).flatten(2, 3).to(out.dtype)


def _wide(vectors: Tensor) -> Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()
