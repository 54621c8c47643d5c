"""Gain-shape coding: the length of a vector in one byte, codes for its direction (Gray 1984; TurboQuant's norms)."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 16  # of an octave: a gain errs by 2.2% at most, and codes make up for some of it
_ZERO = 128  # eight octaves up and down from the middle


def middle_gain(vectors: Tensor) -> Tensor:
    """(H,) base-2 logarithm of the median root mean square of vectors (H, N, D): what the middle byte stands for."""
    return _rms(vectors).log2().median(-1).values


def gain_bytes(vectors: Tensor, middle: Tensor) -> Tensor:
    """Root mean squares of vectors (..., H, T, D) as bytes (..., H, T), in sixteenths of an octave around `middle`."""
    steps = (_rms(vectors).log2() - middle[:, None].to(vectors.dtype)) * _STEPS
    return (steps + _ZERO).round().clamp(0, 255).to(torch.uint8)


def gains(stored: Tensor, middle: Tensor, dtype: torch.dtype) -> Tensor:
    """What bytes (..., H, T) stand for."""
    return torch.exp2((stored.to(dtype) - _ZERO) / _STEPS + middle[:, None].to(dtype))


def _rms(vectors: Tensor) -> Tensor:
    return vectors.square().mean(-1).sqrt().clamp(min=1e-30)
