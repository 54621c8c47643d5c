"""The incremental decoder of the report, a layer at a time, with the order in which it changes its state.

`RoundTripLayer` is PAR-018, `ResidentLayer` PAR-020 with the KV heads of PAR-021. Both count a token before anything is
launched (`length`), as the report does: a step that fails after that and is tried again leaves its token twice.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.reported.memory import DeviceMemory
from pqkv.kernels.reported.one_warp import one_warp
from pqkv.kernels.reported.round_trip import round_trip


class ResidentLayer:
    """Keys and values (Hkv, max_len, D) of a layer in `memory`; a step appends one token and attends on the device."""

    def __init__(self, memory: DeviceMemory, heads: int, kv_heads: int, head_dim: int, max_len: int) -> None:
        self.memory, self.heads, self.length = memory, heads, 0
        self.keys, self.values = (memory.empty(kv_heads, max_len, head_dim) for _ in range(2))

    def step(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (Hq * D), key and value (Hkv * D) on the host -> output (Hq * D) on the host. Raises `KernelError` for
        other sizes, and where there is no room.
        """
        D = self.keys.shape[2]
        self._append(query, key, value)
        above = self.memory.empty(self.heads, D)
        above.copy_(query.view(self.heads, D))
        out = self.memory.empty(self.heads, D)
        self.memory.launch(one_warp, above, self.keys, self.values, out, self.length)
        self.memory.synchronize()
        found = torch.empty(self.heads, D)
        found.copy_(out)
        self.memory.free(above, out)
        return found.flatten()

    def _append(self, query: Tensor, key: Tensor, value: Tensor) -> None:
        heads, max_len, D = self.keys.shape
        sizes = (("query", query, self.heads * D), ("key", key, heads * D), ("value", value, heads * D))
        for name, given, size in sizes:
            if given.numel() != size:
                raise KernelError(f"dimension mismatch: expected {size}, got {name}[{given.numel()}]")
        if self.length + 1 > max_len:
            raise KernelError(f"KV cache overflow: max_len={max_len}, trying to add position {self.length + 1}")
        for buffer, new in ((self.keys, key), (self.values, value)):
            for head in range(heads):
                buffer[head, self.length].copy_(new[head * D : (head + 1) * D])
        self.length += 1


class RoundTripLayer(ResidentLayer):
    """Keys and values (Hq, max_len, D): this one knows no KV heads of their own, its caller has to repeat them."""

    def __init__(self, memory: DeviceMemory, heads: int, head_dim: int, max_len: int) -> None:
        super().__init__(memory, heads, heads, head_dim, max_len)

    def step(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query, key, value (Hq * D) on the host -> output (Hq * D) on the host."""
        self._append(query, key, value)
        return round_trip(self.memory, query.view(self.heads, -1), self.keys, self.values, self.length).flatten()
