"""Asymmetric min-max rounding to integers: what `int` and `kivi` do along different axes."""

from __future__ import annotations

from torch import Tensor

from pqkv.codec.peers.groups import to_half


def affine(values: Tensor, bits: int, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes like `values`, uint8, and float16 scales and zeros of size 1 along `axis`, whose elements share them.

    The zero is the least value, the scale the range over 2**bits - 1; codes are of the float16 ones that decode.
    """
    least, largest = values.amin(axis, keepdim=True), values.amax(axis, keepdim=True)
    top = 2**bits - 1
    scales, zeros = to_half((largest - least) / top), to_half(least)
    steps = scales.to(values.dtype)
    steps = steps.where(steps > 0, 1)  # a constant group is its zero
    codes = ((values - zeros.to(values.dtype)) / steps).round().clamp(0, top)
    return codes.byte(), scales, zeros


def affine_restored(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """What codes stand for, float32."""
    return codes.float() * scales.float() + zeros.float()
