"""One new token of each sequence, copied bit for bit into its slot of the exact buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import cuda, int64, uint64


def slots_kernel(_: None) -> Callable[..., Any]:
    """The kernel, not compiled yet. Its grid is (KV heads, sequences), any block; arrays are of the bits of elements:
    keys, values (B, Hkv, 1, D), key_buffer, value_buffer (B, Hkv, capacity, D), positions (B,) int32.
    """

    def kernel(keys, values, key_buffer, value_buffer, positions, capacity, head_dim):
        kv, b = cuda.blockIdx.x, cuda.blockIdx.y
        position = int64(positions[uint64(b)])
        if position < 0 or position >= capacity:
            return
        row = int64(b) * cuda.gridDim.x + kv
        for e in range(cuda.threadIdx.x, head_dim, cuda.blockDim.x):
            source, target = row * head_dim + e, (row * capacity + position) * head_dim + e
            key_buffer[uint64(target)] = keys[uint64(source)]
            value_buffer[uint64(target)] = values[uint64(source)]

    return kernel
