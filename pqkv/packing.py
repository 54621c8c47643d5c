"""Codes of 1 to 12 bits as a little-endian bit stream along the last axis.

8-bit codes are plain uint8; every other width is really packed, so a 3-bit cache occupies 3 bits an element.
Each line (last axis) starts at a byte boundary.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from pqkv.compiled import compiled


def packed_size(count: int, nbits: int) -> int:
    """Bytes that `count` codes of `nbits` bits occupy."""
    return -(-count * nbits // 8)


def pack(codes: Tensor, nbits: int) -> Tensor:
    """Pack integer codes (..., n), each below 2**nbits, into uint8 (..., packed_size(n, nbits))."""
    if nbits == 8:
        return codes.to(torch.uint8)
    count = codes.shape[-1]
    if codes.device.type == "cpu":
        lines = codes.to(torch.int16).reshape(math.prod(codes.shape[:-1]), count).contiguous().numpy()
        packed_lines = np.zeros((len(lines), packed_size(count, nbits)), np.uint8)
        _pack_lines(lines, nbits, packed_lines)
        return torch.from_numpy(packed_lines).reshape(*codes.shape[:-1], packed_lines.shape[1])
    return pack_by_tensors(codes, nbits)


def pack_by_tensors(codes: Tensor, nbits: int) -> Tensor:
    """`pack` on any device."""
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


@compiled(nogil=True)
def _pack_lines(codes: np.ndarray, nbits: int, packed: np.ndarray) -> None:
    for line in range(codes.shape[0]):
        word, filled, place = numba.uint64(0), 0, 0
        for i in range(codes.shape[1]):
            word |= numba.uint64(codes[line, i]) << numba.uint64(filled)
            filled += nbits
            while filled >= 8:
                packed[line, place] = word & numba.uint64(255)
                word >>= numba.uint64(8)
                filled -= 8
                place += 1
        if filled:
            packed[line, place] = word & numba.uint64(255)
