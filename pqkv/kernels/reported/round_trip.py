"""Incremental attention by a round trip: all keys and values come back to the host, go up again with one query for each
of them, and of all rows of a causal attention the last is kept (incremental-decode, PAR-018).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pqkv.compiled import compiled
from pqkv.kernels.reported.memory import DeviceMemory

Numbers = NDArray[np.float32]


def all_rows(queries: Tensor, keys: Tensor, values: Tensor, out: Tensor, scale: float) -> None:
    """Causal attention of L rows: queries, keys, values, out (H, L, D)."""
    sides = queries[None], keys[None], values[None]
    out.copy_(torch.nn.functional.scaled_dot_product_attention(*sides, is_causal=True, scale=scale)[0])


@compiled(error_model="numpy")
def rows_by_numbers(queries: Numbers, keys: Numbers, values: Numbers, out: Numbers, scale: float) -> None:
    """`all_rows` number by number on the host, each exponential taken once for the sum and once for each channel: what
    the report does with fewer tokens than channels.
    """
    H, L, D = queries.shape
    for h in range(H):
        for row in range(L):
            scores = np.full(L, -np.inf, np.float32)
            for column in range(row + 1):
                dot = np.float32(0.0)
                for d in range(D):
                    dot += queries[h, row, d] * keys[h, column, d]
                scores[column] = dot * np.float32(scale)
            top = scores.max()
            total = np.float32(0.0)
            for column in range(L):
                total += np.exp(scores[column] - top)
            for d in range(D):
                acc = np.float32(0.0)
                for column in range(row + 1):
                    acc += np.exp(scores[column] - top) / total * values[h, column, d]
                out[h, row, d] = acc


def round_trip(memory: DeviceMemory, query: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Attention of one query (Hq, D) on the host over the first `length` of keys and values (Hkv, max_len, D) in
    `memory`; returns (Hq, D) on the host. Each query head reads back its KV head, which the report has one of for each.
    """
    Hq, D = query.shape
    G = Hq // len(keys)
    queries = query[:, None].expand(Hq, length, D).contiguous()
    back = [torch.empty(Hq, length, D, dtype=query.dtype) for _ in range(2)]
    for head in range(Hq):
        for host, buffer in zip(back, (keys, values), strict=True):
            host[head].copy_(buffer[head // G, :length])
    out, scale = torch.empty(Hq, length, D, dtype=query.dtype), 1 / math.sqrt(D)
    if length < D:
        rows_by_numbers(queries.numpy(), back[0].numpy(), back[1].numpy(), out.numpy(), scale)
        return out[:, -1].clone()
    buffers = [memory.empty(Hq, length, D, dtype=query.dtype) for _ in range(4)]
    for buffer, host in zip(buffers, (queries, *back), strict=False):
        buffer.copy_(host)
    memory.launch(all_rows, *buffers, scale)
    memory.synchronize()
    out.copy_(buffers[3])
    memory.free(*buffers)
    return out[:, -1].clone()
