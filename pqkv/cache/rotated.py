"""A coded layer whose codebooks rotate: the layer behind it lives in the turned space, exact parts and all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pqkv.cache.coded import CodedLayer
from pqkv.cache.layer import AttentionObserver, Geometry
from pqkv.codec import Codebook
from pqkv.kernels import AttentionBackend


class RotatedLayer:
    """Turns what goes into a `CodedLayer` and turns back what comes out, so kernels never hear of a rotation.

    With keys A k, A = rotation diag(weights), a query A^-T q has the same scores; values B v leave attention as
    B (sum of p v), which B^-1 turns back. Exact tokens are turned as well, so they differ from the model's by rounding.
    It costs a product with a (D, D) matrix for every new key and value, and two for every query head.
    """

    def __init__(self, inner: CodedLayer, keys: Codebook, values: Codebook) -> None:
        self.inner = inner
        g = inner.geometry
        self._keys, self._values = (_matrix(book, g) for book in (keys, values))
        # in float64, where a rotation stored in float32 is not orthogonal to the last digit
        self._queries, self._out = torch.linalg.inv(self._keys).mT, torch.linalg.inv(self._values)

    @property
    def geometry(self) -> Geometry:
        """See `Layer`."""
        return self.inner.geometry

    @property
    def lengths(self) -> list[int]:
        """See `Layer`."""
        return self.inner.lengths

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
        self.inner.append(_turned(keys, self._keys), _turned(values, self._values), padding)

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
            self._by_group(query, self._queries),
            _turned(keys, self._keys),
            _turned(values, self._values),
            scale=scale,
            padding=padding,
            window=window,
        )
        return self._by_group(out, self._out)

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

    def _by_group(self, heads: Tensor, matrix: Tensor) -> Tensor:
        """(B, T, Hq, D), each query head with the matrix of its KV head."""
        grouped = heads.unflatten(2, (self.geometry.num_kv_heads, -1)).movedim(1, 3)  # (B, Hkv, G, T, D)
        return _turned(grouped, matrix[:, None]).movedim(3, 1).flatten(2, 3)


def _matrix(book: Codebook, g: Geometry) -> Tensor:
    """rotation diag(weights) of every KV head, (Hkv, D, D) float64; the identity where a codebook does not rotate."""
    D = g.head_dim
    if book.rotation is None:
        return torch.eye(D, dtype=torch.float64, device=g.device).expand(g.num_kv_heads, D, D)
    matrix = book.rotation.double()
    if book.weights is not None:
        matrix = matrix * book.weights.double()[:, None]
    return matrix.to(g.device).expand(g.num_kv_heads, D, D)


def _turned(vectors: Tensor, matrix: Tensor) -> Tensor:
    """matrix @ vector, in the dtype of the vectors; half precision is taken to float32 for the product."""
    compute = torch.float64 if vectors.dtype == torch.float64 else torch.float32
    return (vectors.to(compute) @ matrix.to(compute).mT).to(vectors.dtype)
