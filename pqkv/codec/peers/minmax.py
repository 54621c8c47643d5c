"""Asymmetric rounding between the least and the largest of some numbers, with scale and zero in float16."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 65504.0  # of float16


def half(numbers: Tensor) -> Tensor:
    """Numbers in float16, none of them infinite."""
    return numbers.clamp(-_LARGEST, _LARGEST).half()


def safe(divisors: Tensor) -> Tensor:
    """Divisors with 1 in place of 0: what is all zero stays zero, and is no NaN."""
    return torch.where(divisors == 0, torch.ones_like(divisors), divisors)


def round_min_max(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (..., n) uint8 of x (..., n), and a scale and a zero (..., 1) float16 that they are of."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale, zero = half((high - low) / (2**bits - 1)), half(low)
    codes = ((x - zero.to(x.dtype)) / safe(scale.to(x.dtype))).round()
    return codes.clamp(0, 2**bits - 1).to(torch.uint8), scale, zero


def put_back(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """What codes stand for, float32."""
    return codes.float() * scale.float() + zero.float()
