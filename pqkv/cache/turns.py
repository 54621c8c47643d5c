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
    """Makes the query that the codes of a book meet, by one product: of q with F^-1 and with what makes its phasors.

    Coded token j of a sequence stands at position first + j, `first` the sinks in front of it, and positions count real
    tokens: padding is never cached. The phasors' origin is the first coded token.
    """

    def __init__(self, book: Codebook, first: int, num_kv_heads: int, device: torch.device) -> None:
        D = book.head_dim
        blocks, frequencies = [_inverse(book, num_kv_heads)], []
        if book.mean is not None:  # a pair that does not turn: q.mean, and nothing of the sine
            mean = book.mean.double()[..., None]
            blocks.append(torch.cat([mean, torch.zeros_like(mean)], -1))
            frequencies.append(0.0)
        if book.turning is not None:
            blocks.append(_phasor_columns(book, first))
            frequencies += book.frequencies
        self.frequencies = tuple(frequencies)
        self._head_dim = D
        with torch.inference_mode(False):
            self._matrix = torch.cat(blocks, -1).to(device)  # (Hkv, D, D + 2 P) float64
        self._as: dict[torch.dtype, Tensor] = {}

    @classmethod
    def of(cls, book: Codebook, first: int, num_kv_heads: int, device: torch.device) -> CodedQueries | None:
        """None where codes stand for the keys themselves."""
        if all(part is None for part in (book.rotation, book.back, book.mean, book.turning)):
            return None
        return cls(book, first, num_kv_heads, device)

    def __call__(self, query: Tensor) -> CodedQuery:
        """What stands in the place of query (B, T, Hq, D), in float32, or float64 from float64."""
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        if dtype not in self._as:
            with torch.inference_mode(False):  # it outlives the mode of the first step
                self._as[dtype] = self._matrix.to(dtype)
        matrix = self._as[dtype]
        B, T, Hq, D = query.shape
        grouped = query.to(dtype).reshape(B, T, len(matrix), -1, D).permute(2, 0, 1, 3, 4).flatten(1, 3)
        both = (grouped @ matrix).unflatten(1, (B, T, -1)).permute(1, 2, 0, 3, 4).flatten(2, 3)  # (B, T, Hq, ...)
        phasors = both[..., D:].unflatten(-1, (len(self.frequencies), 2))
        return CodedQuery(both[..., :D], phasors, self.frequencies)

    def nbytes(self) -> int:
        """Bytes of the products' matrix, made of the book."""
        return sum(matrix.numel() * matrix.element_size() for matrix in self._as.values())


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


def _phasor_columns(book: Codebook, first: int) -> Tensor:
    """(Hkv, D, 2 P): q times it is a_0, b_0, a_1, ... with q . R_p m = sum of a cos(theta j) + b sin(theta j) at p =
    first + j: of a pair (x, y) of q and (u, v) of R_first m, a = x u + y v and b = y u - x v.
    """
    assert book.turning is not None
    rotary = Rotary(torch.tensor(book.frequencies, dtype=torch.float64, device=book.turning.device))
    at = torch.tensor([first], device=book.turning.device)
    turned = rotary.turn(book.turning.double()[:, None], at)[:, 0]  # (Hkv, 2 P)
    P = rotary.pairs
    u, v = turned[:, :P], turned[:, P:]
    columns = turned.new_zeros(len(turned), book.head_dim, P, 2)
    pair = torch.arange(P, device=turned.device)
    columns[:, pair, pair, 0], columns[:, P + pair, pair, 0] = u, v
    columns[:, pair, pair, 1], columns[:, P + pair, pair, 1] = -v, u
    return columns.flatten(2)


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
