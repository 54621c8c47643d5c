"""The partial results of all splits of a query head into one, by log-sum-exp."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from numba import cuda, float32, uint64

from pqkv.kernels.cuda.device import LOWEST, power_of_two

_LN2 = math.log(2)


def merge_kernel(head_dim: int) -> Callable[..., Any]:
    """Grid (query heads, sequences), any block. partial (B, Hq, slots, D + 2) as `exact_kernel` writes it -> out
    (B, Hq, D) float32, lse (B, Hq) float32 in natural units. Heads that saw nothing give 0 and -inf.
    """
    D = head_dim

    def kernel(partial, slots, out, lse):
        head, b = cuda.blockIdx.x, cuda.blockIdx.y
        row = b * cuda.gridDim.x + head
        at = row * slots * (D + 2)
        top = float32(LOWEST)
        for slot in range(slots):
            # a split without tokens has written no maximum to be trusted, only the sum 0
            if partial[uint64(at + slot * (D + 2) + D + 1)] != 0.0:
                top = max(top, partial[uint64(at + slot * (D + 2) + D)])
        total = float32(0.0)
        for slot in range(slots):
            mass = partial[uint64(at + slot * (D + 2) + D + 1)]
            if mass != 0.0:
                total += mass * power_of_two(partial[uint64(at + slot * (D + 2) + D)] - top)
        for e in range(cuda.threadIdx.x, D, cuda.blockDim.x):
            value = float32(0.0)
            for slot in range(slots):
                if partial[uint64(at + slot * (D + 2) + D + 1)] != 0.0:
                    factor = power_of_two(partial[uint64(at + slot * (D + 2) + D)] - top)
                    value += factor * partial[uint64(at + slot * (D + 2) + e)]
            out[uint64(row * D + e)] = value / total if total != 0.0 else float32(0.0)
        if cuda.threadIdx.x == 0:
            lse[uint64(row)] = (top + math.log2(total)) * float32(_LN2) if total != 0.0 else float32(-math.inf)

    return kernel
