"""Codes of 1 to 12 bits as a little-endian bit stream along the last axis.

8-bit codes are plain uint8; every other width is really packed, so a 3-bit cache occupies 3 bits an element.
Each line (last axis) starts at a byte boundary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_size(count: int, nbits: int) -> int:
    """Bytes that `count` codes of `nbits` bits occupy."""
    return -(-count * nbits // 8)


def pack(codes: Tensor, nbits: int) -> Tensor:
    """Pack integer codes (..., n), each below 2**nbits, into uint8 (..., packed_size(n, nbits))."""
    if nbits == 8:
        return codes.to(torch.uint8)
    count = codes.shape[-1]
    shifts = torch.arange(nbits, device=codes.device, dtype=torch.int32)
    bits = (codes.to(torch.int32)[..., None] >> shifts) & 1  # (..., n, nbits)
    bits = bits.flatten(-2)  # (..., n * nbits)
    size = packed_size(count, nbits)
    padding = size * 8 - count * nbits
    bits = torch.nn.functional.pad(bits, (0, padding)).unflatten(-1, (size, 8))
    weights = 1 << torch.arange(8, device=codes.device, dtype=torch.int32)
    return (bits * weights).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, nbits: int, count: int) -> Tensor:
    """Inverse of `pack`: uint8 (..., packed_size(count, nbits)) -> int64 codes (..., count)."""
    if nbits == 8:
        return packed[..., :count].to(torch.int64)
    offsets = torch.arange(count, device=packed.device) * nbits
    first, shift = offsets // 8, offsets % 8
    last = packed.shape[-1] - 1
    # a code of at most 12 bits starting at bit 7 ends in its third byte; past the end nothing is needed, so clamp
    words = packed[..., first].to(torch.int64)
    if nbits > 1:
        words = words | (packed[..., (first + 1).clamp(max=last)].to(torch.int64) << 8)
    if nbits > 9:
        words = words | (packed[..., (first + 2).clamp(max=last)].to(torch.int64) << 16)
    return (words >> shift) & ((1 << nbits) - 1)
