"""What all layers of a cache share: their geometry, their interface, their helpers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pqkv.errors import CacheError
from pqkv.kernels import ExactTokens, PagedTokens


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes of one layer's cache and where its exact parts live."""

    num_sequences: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class AttentionObserver(Protocol):
    """Sees the inputs and results of every attention call of a layer (used to check a backend from outside)."""

    def __call__(
        self,
        query: Tensor,
        pages: PagedTokens | None,
        sinks: ExactTokens | None,
        residual: ExactTokens | None,
        *,
        scale: float,
        window: int | None,
        out: Tensor,
        lse: Tensor,
    ) -> None:
        """Look, do not touch."""


class Layer(Protocol):
    """Keys and values of one layer for a batch of sequences."""

    lengths: list[int]
    observer: AttentionObserver | None

    def append(self, keys: Tensor, values: Tensor, padding: Sequence[int] | None = None) -> None:
        """Add tokens (B, Hkv, T, D)."""

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
        """Attention over cached and new tokens, which are then cached."""
        ...

    def select(self, sequences: Sequence[int]) -> None:
        """Make sequence i what sequences[i] was."""

    def reset(self) -> None:
        """Forget every token."""

    def exact_bytes(self) -> tuple[int, int]:
        """Bytes of residual and sinks."""
        ...

    def code_bytes(self) -> int:
        """Bytes of pages or code rows in use."""
        ...


def checked_padding(padding: Sequence[int] | None, keys: Tensor, num_sequences: int) -> Sequence[int]:
    """Padding per sequence, zeros by default; raises `CacheError` if it or the batch does not fit (B, Hkv, T, D)."""
    B, _, T, _ = keys.shape
    if num_sequences != B:
        raise CacheError(f"the cache holds {num_sequences} sequences, the new tokens are of {B}; use fork or select")
    if padding is None:
        return [0] * B
    if len(padding) != B or not all(0 <= pad <= T for pad in padding):
        raise CacheError(f"padding {list(padding)} does not fit a batch of {B} with {T} new tokens")
    return padding


def length_tensor(lengths: Sequence[int], device: torch.device) -> Tensor:
    """(B,) int32."""
    return torch.tensor(list(lengths), dtype=torch.int32, device=device)
