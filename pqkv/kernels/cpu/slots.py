"""One new token a sequence into the buffers of a cache, and whether its numbers are finite: a step's own, in one call.

As operations of torch the copies and the question cost more than the attention of a short context.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pqkv.compiled import compiled

# how the bits of a number are read, and those of its exponent, all of which are set where it is infinite or none
_EXPONENT = {
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float32: (torch.int32, 0x7F80_0000),
    torch.float64: (torch.int64, 0x7FF0_0000_0000_0000),
}


class SlotWriter:
    """Writes one token of each sequence into one of two pairs of buffers, keys and values (B, Hkv, capacity, D) of one
    dtype, contiguous.
    """

    def __init__(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        self.buffers = *first, *second
        kind, exponent = _EXPONENT[self.buffers[0].dtype]
        self._kind, self._exponent = kind, np.array([exponent], f"int{8 * kind.itemsize}")
        self._arrays = tuple(buffer.view(kind).numpy() for buffer in self.buffers)

    def __reduce__(self) -> tuple[type[SlotWriter], tuple[tuple[Tensor, ...], ...]]:
        """Of `copy` and `pickle`: copies of arrays would lie elsewhere than copies of the buffers."""
        return SlotWriter, (self.buffers[:2], self.buffers[2:])

    def write(self, keys: Tensor, values: Tensor, *slots: Sequence[int]) -> bool:
        """Put keys and values (B, Hkv, 1, D) of sequence b into slot slots[p][b] of pair p, where that is not below 0.
        False, with nothing written, where numbers of a sequence that has a slot are infinite or NaN.
        """
        parts = (np.ascontiguousarray(part.view(self._kind).numpy()) for part in (keys, values))
        return bool(_write(*parts, *self._arrays, np.array(slots, np.int64), self._exponent))


@compiled(nogil=True)
def _write(keys, values, first_keys, first_values, second_keys, second_values, slots, exponent):
    B, H, _, D = keys.shape
    mask = exponent[0]
    for b in range(B):
        if slots[0, b] < 0 and slots[1, b] < 0:
            continue
        beyond = False
        for h in range(H):
            for d in range(D):
                beyond |= (keys[b, h, 0, d] & mask) == mask or (values[b, h, 0, d] & mask) == mask
        if beyond:
            return False
    for b in range(B):
        for h in range(H):
            if slots[0, b] >= 0:
                first_keys[b, h, slots[0, b]] = keys[b, h, 0]
                first_values[b, h, slots[0, b]] = values[b, h, 0]
            if slots[1, b] >= 0:
                second_keys[b, h, slots[1, b]] = keys[b, h, 0]
                second_values[b, h, slots[1, b]] = values[b, h, 0]
    return True
