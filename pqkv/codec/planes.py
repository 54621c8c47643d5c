"""What a codec keeps of some vectors: planes of integers and floats, and the bytes they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pqkv.config import NBITS_RANGE
from pqkv.errors import CodebookError
from pqkv.packing import pack, unpack

Planes = Mapping[str, "Plane"]


@dataclass(frozen=True, slots=True)
class Plane:
    """One kind of number that is kept of tokens, of any shape.

    Integers from 0 to 2**width - 1 are packed to `width` bits (1 to 12) each. Without a width numbers are kept as
    their dtype has them: float16 scales take two bytes each, uint8 one, int16 two.
    """

    values: Tensor
    width: int | None = None


@dataclass(frozen=True, slots=True)
class Packed:
    """Bytes of a plane, and what is known without them: the shape and the type of what they hold."""

    data: bytes
    shape: tuple[int, ...]
    dtype: torch.dtype
    width: int | None


def pack_planes(planes: Planes) -> dict[str, Packed]:
    """The bytes of every plane. Raises `CodebookError` for integers that their width does not hold: a size that the
    numbers do not fit into would be no size.
    """
    return {name: _pack(name, plane) for name, plane in planes.items()}


def unpack_planes(packed: Mapping[str, Packed], device: torch.device | None = None) -> dict[str, Plane]:
    """What `pack_planes` packed, from the bytes alone, on `device` (None: the CPU)."""
    unpacked = {name: _unpack(plane) for name, plane in packed.items()}
    return {name: Plane(plane.values.to(device), plane.width) for name, plane in unpacked.items()}


def _pack(name: str, plane: Plane) -> Packed:
    values = plane.values.detach().cpu().contiguous()
    shape = tuple(values.shape)
    if plane.width is None:
        data = bytes(values.reshape(-1).view(torch.uint8).numpy()) if values.numel() else b""
        return Packed(data, shape, values.dtype, None)
    if not NBITS_RANGE[0] <= plane.width <= NBITS_RANGE[1]:
        raise CodebookError(f"plane {name}: integers of {plane.width} bits cannot be packed")
    if values.numel() and (int(values.min()) < 0 or int(values.max()) >= 2**plane.width):
        raise CodebookError(f"plane {name}: {int(values.min())} to {int(values.max())} do not fit {plane.width} bits")
    return Packed(bytes(pack(values.reshape(-1), plane.width).numpy()), shape, values.dtype, plane.width)


def _unpack(packed: Packed) -> Plane:
    raw = torch.frombuffer(bytearray(packed.data), dtype=torch.uint8) if packed.data else torch.empty(0).byte()
    if packed.width is None:
        return Plane(raw.view(packed.dtype).reshape(packed.shape))
    count = 1
    for size in packed.shape:
        count *= size
    codes = unpack(raw, packed.width, count) if count else torch.empty(0, dtype=torch.int64)
    return Plane(codes.to(packed.dtype).reshape(packed.shape), packed.width)
