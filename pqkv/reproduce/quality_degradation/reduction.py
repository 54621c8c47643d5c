"""The report's repair of its reductions, thread by thread as it is listed, on shared memory that holds what it held.

    float warp_max = warpReduceMax(max_score);
    __shared__ float block_max[32]; // one per warp
    if (lane_id == 0) block_max[warp_id] = warp_max;
    __syncthreads();
    if (warp_id == 0) warp_max = warpReduceMax(block_max[lane_id]);
    if (threadIdx.x == 0) block_max[0] = warp_max;
    __syncthreads();
    max_score = block_max[0];

`warpReduceMax` is not listed: it is taken for the loop of `__shfl_down_sync` that the report lists before.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
WARP = 32
# fmaxf drops a NaN where its other argument is a number, as np.fmax does; a sum keeps it
OPERATIONS: dict[str, Callable[[Floats, Floats], Floats]] = {"maximum": np.fmax, "sum": np.add}
NEUTRAL = {"maximum": -np.inf, "sum": 0.0}


def warp_reduced(values: Floats, operation: str) -> Floats:
    """What each lane of a warp (32,) holds after the loop; lane 0 holds the result. A lane whose partner lies past the
    warp gets its own value back.
    """
    values = values.copy()
    for offset in (16, 8, 4, 2, 1):
        partner = np.where(np.arange(WARP) + offset < WARP, np.arange(WARP) + offset, np.arange(WARP))
        values = OPERATIONS[operation](values, values[partner])
    return values


def block_reduced(values: Floats, memory: Floats, operation: str) -> np.float32:
    """What every thread of a block reads in the end: `values` (threads,), whole warps, `memory` (32,) what lay in
    `block_max` before. The listing clears none of it.
    """
    memory = memory.copy()
    for warp, lanes in enumerate(values.reshape(-1, WARP)):
        memory[warp] = warp_reduced(lanes, operation)[0]
    first = warp_reduced(memory, operation)  # all 32 lanes of warp 0 read, however many warps wrote
    return np.float32(first[0])
