"""Channels in groups that share a scale, and the float16 that scales are kept in."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.errors import ConfigError


def grouped(vectors: Tensor, size: int, codec: str, remedy: str) -> Tensor:
    """Vectors (..., D) as (..., D / size, size). Raises `ConfigError` with the remedy where groups do not divide D."""
    if vectors.shape[-1] % size:
        raise ConfigError(f"{codec}: groups of {size} channels do not divide heads of {vectors.shape[-1]}: {remedy}")
    return vectors.unflatten(-1, (-1, size))


def to_half(values: Tensor) -> Tensor:
    """Values in float16; what is past its largest number is that number, as an infinite scale restores NaN."""
    largest = torch.finfo(torch.float16).max
    return values.clamp(-largest, largest).half()
