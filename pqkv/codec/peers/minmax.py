"""Asymmetric rounding between the least and the largest of some numbers, with scale and zero in float16."""

from __future__ import annotations

import torch
from torch import Tensor

_LARGEST = 65504.0  # of float16


def half(numbers: Tensor) -> Tensor:
    """Numbers in float16; what is past its largest is that, as an infinite scale would restore NaN."""
    return numbers.clamp(-_LARGEST, _LARGEST).half()


def safe(divisors: Tensor) -> Tensor:
    """Divisors with 1 in place of 0: what is all zero stays zero, and is no NaN."""
    return torch.where(divisors == 0, torch.ones_like(divisors), divisors)


def round_min_max(x: Tensor, bits: int, axis: int = -1) -> tuple[Tensor, Tensor, Tensor]:
    """Codes like x, uint8, and float16 scales and zeros of size 1 along `axis`, whose elements share them.

    The zero is the least of them, the scale their range over 2**bits - 1; codes are of the float16 ones that decode.
    """
    low, high = x.amin(axis, keepdim=True), x.amax(axis, keepdim=True)
    scale, zero = half((high - low) / (2**bits - 1)), half(low)
    codes = ((x - zero.to(x.dtype)) / safe(scale.to(x.dtype))).round()
    return codes.clamp(0, 2**bits - 1).to(torch.uint8), scale, zero


def put_back(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """What codes stand for, float32."""
    return codes.float() * scale.float() + zero.float()
