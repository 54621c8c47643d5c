"""Channels in groups that share a scale."""

from __future__ import annotations

from torch import Tensor

from pqkv.errors import ConfigError


def grouped(vectors: Tensor, size: int, codec: str, remedy: str) -> Tensor:
    """Vectors (..., D) as (..., D / size, size). Raises `ConfigError` with the remedy where groups do not divide D."""
    if vectors.shape[-1] % size:
        raise ConfigError(f"{codec}: groups of {size} channels do not divide heads of {vectors.shape[-1]}: {remedy}")
    return vectors.unflatten(-1, (-1, size))
