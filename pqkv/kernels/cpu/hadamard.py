"""A few rows times the Hadamard matrix of `pqkv.codec.transforms.hadamard`: values of a step, and what comes of them.

A product of matrices in torch takes as long as the attention of a short context, whatever it multiplies. Here it is
sums and differences: of registers, then of the halves of each, of their quarters, of single numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from pqkv.compiled import compiled
from pqkv.vector_code import I64, add_product, constant, data, drop_stale_code, floats, shuffle, store, tag, vector

_LANES = 8  # floats of a register
_MOST = 512  # numbers of a block: the code has a line for every pair of registers
_FEW = 32_768  # numbers in all: with more, torch's threads are worth their start


def turned_rows(vectors: Tensor) -> Tensor:
    """Vectors (..., D) float32 times the Hadamard matrix, its own inverse, whose blocks are the largest power of two
    that divides D. A row's numbers do not depend on how many rows there are.
    """
    rows = np.ascontiguousarray(vectors.detach().numpy())
    turned = np.empty_like(rows)
    D = rows.shape[-1]
    _turn(rows.reshape(-1), turned.reshape(-1), tag((D & -D).bit_length() - 1))
    return torch.from_numpy(turned)


def serves_rows(vectors: Tensor) -> bool:
    """Whether `turned_rows` takes these vectors, and is faster than a product."""
    D = vectors.shape[-1]
    few = vectors.is_cpu and vectors.dtype == torch.float32 and vectors.numel() <= _FEW
    return few and _LANES <= (D & -D) <= _MOST


@intrinsic
def _turn_block(typing_context, rows, turned, place, bits):
    """turned[place + i] = the sum over j of rows[place + j] * the Hadamard matrix of 2**bits, i and j below that."""
    size = 1 << len(bits)
    signature = types.void(rows, turned, types.intp, bits)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, turned = (data(context, builder, signature, arguments, i) for i in range(2))
        starts = [builder.add(arguments[2], I64(first)) for first in range(0, size, _LANES)]
        scale = constant(floats(_LANES), [size**-0.5] * _LANES)
        parts = [builder.fmul(vector(builder, rows, start, _LANES), scale) for start in starts]
        apart = len(parts) // 2
        while apart:
            for i in range(len(parts)):
                if not i & apart:
                    a, b = parts[i], parts[i + apart]
                    parts[i], parts[i + apart] = builder.fadd(a, b), builder.fsub(a, b)
            apart //= 2
        apart = _LANES // 2
        while apart:
            signs = constant(floats(_LANES), [-1.0 if i & apart else 1.0 for i in range(_LANES)])
            parts = [
                add_product(builder, part, signs, shuffle(builder, part, [i ^ apart for i in range(_LANES)]))
                for part in parts
            ]
            apart //= 2
        for start, part in zip(starts, parts, strict=True):
            store(builder, part, turned, start)
        return context.get_dummy_value()

    return signature, generate


@compiled(nogil=True)
def _turn(rows, turned, bits):
    for place in range(0, len(rows), 1 << len(bits)):
        _turn_block(rows, turned, place, bits)


drop_stale_code(_turn)
