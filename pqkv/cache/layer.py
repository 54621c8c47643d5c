"""What all layers of a cache share: their geometry, their interface, their helpers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pqkv.cache.window import Window
from pqkv.errors import CacheError
from pqkv.kernels import AttentionBackend, ExactTokens, PagedTokens


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

    backend: AttentionBackend
    observer: AttentionObserver | None
    window: Window | None

    @property
    def geometry(self) -> Geometry:
        """Sizes, dtype and device."""
        ...

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence."""
        ...

    @property
    def coded(self) -> list[int]:
        """Tokens of each sequence that lie as codes."""
        ...

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

    def check_crop(self, lengths: Sequence[int]) -> None:
        """Raise `CacheError` where `crop` would, and change nothing."""

    def crop(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths[b]` tokens of sequence b; the owner of the page table releases pages."""

    def reset(self) -> None:
        """Forget every token."""

    def page_counts(self) -> list[int]:
        """Pages that each sequence's tokens take."""
        ...

    def first_pages(self) -> list[int]:
        """The first page of each sequence that its next query sees."""
        ...

    def exact_bytes(self) -> tuple[int, int]:
        """Bytes of residual and sinks."""
        ...

    def page_bytes(self) -> tuple[int, int]:
        """Bytes of pages (or code rows) in use, shared ones once, and of those that wait for tokens."""
        ...

    def derived_bytes(self) -> int:
        """Bytes of what was made of codebooks to be faster."""
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


def checked_finite(keys: Tensor, values: Tensor, padding: Sequence[int]) -> None:
    """Raise `CacheError` for NaN or infinite keys or values (B, Hkv, T, D) among the real ones."""
    # one pass without a mask in memory: a sum is finite if all terms are (in float64 floats cannot overflow it); and
    # one answer to wait for where the vectors are on a GPU
    if torch.isfinite(keys.sum(dtype=torch.float64) + values.sum(dtype=torch.float64)):
        return
    for name, vectors in (("keys", keys), ("values", values)):
        if any(not torch.isfinite(row[:, pad:]).all() for row, pad in zip(vectors, padding, strict=True)):
            raise CacheError(
                f"the model produced {name} that are NaN or infinite, which no code can stand for; "
                "run it in another --dtype and check its weights"
            )


def checked_crop(lengths: Sequence[int], wanted: Sequence[int]) -> None:
    """Raise `CacheError` unless `wanted` shortens each of `lengths`."""
    if len(wanted) != len(lengths) or not all(0 <= new <= old for new, old in zip(wanted, lengths, strict=False)):
        raise CacheError(f"cannot crop sequences of {list(lengths)} tokens to {list(wanted)}")


def length_tensor(lengths: Sequence[int], device: torch.device) -> Tensor:
    """(B,) int32. The host does not wait until a GPU has it: it is copied from pinned memory in the stream's order."""
    return length_tensors([lengths], device)[0]


def length_tensors(parts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, ...]:
    """`length_tensor` of each of `parts`, in one copy and one after another in memory."""
    rows = [list(lengths) for lengths in parts]
    if device.type == "cuda":
        return torch.tensor(rows, dtype=torch.int32, pin_memory=True).to(device, non_blocking=True).unbind()
    if device.type == "cpu":  # half as long as `torch.tensor`, of which a layer asks one in every step
        return torch.from_numpy(np.array(rows, np.int32)).unbind()
    return torch.tensor(rows, dtype=torch.int32, device=device).unbind()
