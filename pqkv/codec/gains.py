"""Gain-shape coding: the length of a vector in one byte, codes for its direction (Gray 1984; TurboQuant's norms)."""

from __future__ import annotations

import torch
from torch import Tensor

_STEPS = 16  # of an octave: a gain errs by 2.2% at most, and codes make up for some of it
_ZERO = 128


def gain_bytes(vectors: Tensor) -> Tensor:
    """Root mean squares of vectors (..., D) as bytes (...), uint8, in sixteenths of an octave around 1."""
    rms = vectors.square().mean(-1).sqrt().clamp(min=1e-30)
    return (rms.log2() * _STEPS + _ZERO).round().clamp(0, 255).to(torch.uint8)


def gains(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """What bytes (...) stand for."""
    return torch.exp2((stored.to(dtype) - _ZERO) / _STEPS)
