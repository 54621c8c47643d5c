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
    groups = -(-count // 8)  # 8 codes fill nbits bytes exactly
    padded = torch.nn.functional.pad(codes.to(torch.int32), (0, groups * 8 - count)).unflatten(-1, (groups, 8))
    packed = torch.zeros((*padded.shape[:-1], nbits), dtype=torch.uint8, device=codes.device)
    for i in range(8):
        for byte in range(i * nbits // 8, ((i + 1) * nbits - 1) // 8 + 1):  # the bytes that hold some of code i
            shift = i * nbits - 8 * byte  # of the code's lowest bit in this byte
            code = padded[..., i]
            packed[..., byte] |= ((code << shift if shift >= 0 else code >> -shift) & 255).to(torch.uint8)
    return packed.flatten(-2)[..., : packed_size(count, nbits)]


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
