"""A coded layer whose codebooks rotate: the layer behind it lives in the turned space, exact parts and all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pqkv.cache.coded import CodedLayer
from pqkv.cache.layer import AttentionObserver, Geometry
from pqkv.codec import Codebook
from pqkv.kernels import AttentionBackend


@dataclass(frozen=True, slots=True)
class _Turn:
    """A = rotation diag(weights) of one side. It holds the codebook's own tensors, (H, D, D) and (H, D), which are
    counted there, and takes the transpose of the rotation for its inverse, as `Codebook.decode` does.
    """

    rotation: Tensor | None
    weights: Tensor | None

    @classmethod
    def of(cls, book: Codebook, device: torch.device) -> _Turn:
        """The identity for a codebook that does not rotate."""
        if book.rotation is None:
            return cls(None, None)
        return cls(book.rotation.to(device), None if book.weights is None else book.weights.to(device))

    def apply(self, vectors: Tensor) -> Tensor:
        """A v of vectors (B, Hkv, ..., T, D), in their dtype; half precision is taken to float32 for the product."""
        return self._product(vectors, inverse_weights=False)

    def apply_dual(self, vectors: Tensor) -> Tensor:
        """A^-T v: what has the products with A u that v has with u."""
        return self._product(vectors, inverse_weights=True)

    def undo(self, vectors: Tensor) -> Tensor:
        """A^-1 v."""
        if self.rotation is None:
            return vectors
        wide = _wide(vectors)
        wide = wide @ _beside(self.rotation, wide)
        if self.weights is not None:
            wide = wide / _beside(self.weights[:, None], wide)
        return wide.to(vectors.dtype)

    def _product(self, vectors: Tensor, *, inverse_weights: bool) -> Tensor:
        if self.rotation is None:
            return vectors
        wide = _wide(vectors)
        if self.weights is not None:
            weights = _beside(self.weights[:, None], wide)
            wide = wide / weights if inverse_weights else wide * weights
        return (wide @ _beside(self.rotation, wide).mT).to(vectors.dtype)


class RotatedLayer:
    """Turns what goes into a `CodedLayer` and turns back what comes out, so kernels never hear of a rotation.

    With keys A k, A = rotation diag(weights), a query A^-T q has the same scores; values B v leave attention as
    B (sum of p v), which B^-1 turns back. Exact tokens are turned as well, so they differ from the model's by rounding.
    It costs a product with a (D, D) matrix for every new key and value, and two for every query head.
    """

    def __init__(self, inner: CodedLayer, keys: Codebook, values: Codebook) -> None:
        self.inner = inner
        self._keys, self._values = (_Turn.of(book, inner.geometry.device) for book in (keys, values))

    @property
    def geometry(self) -> Geometry:
        """See `Layer`."""
        return self.inner.geometry

    @property
    def lengths(self) -> list[int]:
        """See `Layer`."""
        return self.inner.lengths

    @property
    def coded(self) -> list[int]:
        """See `Layer`."""
        return self.inner.coded

    @property
    def observer(self) -> AttentionObserver | None:
        """Sees attention as the backend does, in the turned space."""
        return self.inner.observer

    @observer.setter
    def observer(self, observer: AttentionObserver | None) -> None:
        self.inner.observer = observer

    @property
    def backend(self) -> AttentionBackend:
        """What attends, in the turned space."""
        return self.inner.backend

    @backend.setter
    def backend(self, backend: AttentionBackend) -> None:
        self.inner.backend = backend

    def append(self, keys: Tensor, values: Tensor, padding: Sequence[int] | None = None) -> None:
        """See `Layer`."""
        self.inner.append(self._keys.apply(keys), self._values.apply(values), padding)

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float,
        padding: Sequence[int] | None = None,
        window: int | None = None,
    ) -> Tensor:
        """See `Layer`; query and result (B, T, Hq, D)."""
        out = self.inner.attend(
            self._by_group(query, self._keys.apply_dual),
            self._keys.apply(keys),
            self._values.apply(values),
            scale=scale,
            padding=padding,
            window=window,
        )
        return self._by_group(out, self._values.undo)

    def select(self, sequences: Sequence[int]) -> None:
        """See `Layer`."""
        self.inner.select(sequences)

    def check_crop(self, lengths: Sequence[int]) -> None:
        """See `Layer`."""
        self.inner.check_crop(lengths)

    def crop(self, lengths: Sequence[int]) -> None:
        """See `Layer`."""
        self.inner.crop(lengths)

    def reset(self) -> None:
        """See `Layer`."""
        self.inner.reset()

    def page_counts(self) -> list[int]:
        """See `Layer`."""
        return self.inner.page_counts()

    def exact_bytes(self) -> tuple[int, int]:
        """See `Layer`."""
        return self.inner.exact_bytes()

    def page_bytes(self) -> tuple[int, int]:
        """See `Layer`."""
        return self.inner.page_bytes()

    def _by_group(self, heads: Tensor, turn: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, T, Hq, D), each query head turned with its KV head."""
        grouped = heads.unflatten(2, (self.geometry.num_kv_heads, -1)).movedim(1, 3)  # (B, Hkv, G, T, D)
        return turn(grouped).movedim(3, 1).flatten(2, 3)


def _wide(vectors: Tensor) -> Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def _beside(part: Tensor, vectors: Tensor) -> Tensor:
    """(H, a, b) in the dtype of vectors (B, Hkv, ..., T, D), with a dimension of one for each of those between."""
    return part.to(vectors.dtype).reshape(part.shape[0], *[1] * (vectors.ndim - 4), *part.shape[1:])
