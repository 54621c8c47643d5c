"""One warp a row and head: pages against brute force in float64, tokens by index against the processor's own.

Small enough for the simulator.
"""

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build

from pqkv.errors import KernelError
from pqkv.kernels.cuda.warp import attend_by_index, decode_by_warps
from pqkv.kernels.indexed import indexed_attention

ALONE = Spec(nbits=None, layouts=("row", "row"), context=(0, 1, 65), head_dim=32, heads=1, group=2,
             dtype=torch.float32, unused="poison")  # fmt: skip


def check(spec, device, window=None):
    batch, scale = build(spec), spec.head_dim**-0.5
    out, lse = decode_by_warps(batch.query.to(device), batch.pages.to(device), scale=scale, window=window)
    right, right_lse = brute_force(batch, scale, window)
    np.testing.assert_allclose(out.double().cpu().numpy(), right, atol=1e-5)
    np.testing.assert_allclose(lse.double().cpu().numpy(), right_lse, atol=1e-5)


def test_one_warp_a_head(device):
    for head_dim in (32, 64):
        check(ALONE.but(head_dim=head_dim), device)
    check(ALONE.but(context=(45, 7)), device, window=20)
    with pytest.raises(KernelError, match="among 32 lanes, and a head has 16"):
        check(ALONE.but(head_dim=16), device)


def test_an_index_and_an_offset_a_token(device):
    generator = torch.Generator().manual_seed(0)
    slots = torch.randperm(36, generator=generator)[:21]
    keys, values = (torch.full((9, 4, 2, 32), float("nan")) for _ in range(2))
    for side in (keys, values):
        side.view(36, 2, 32)[slots] = torch.randn(21, 2, 32, generator=generator)
    query, indices, offsets = torch.randn(5, 4, 32, generator=generator), (slots // 4).int(), (slots % 4).int()
    for window in (0, 7):
        scaled = query * (0.3 * np.log2(np.e))
        out, lse = attend_by_index(
            scaled.to(device), tuple(side.flatten().to(device) for side in (keys, values)),
            (indices.to(device), offsets.to(device)), keys.stride()[:3], 2, window,
        )  # fmt: skip
        right, right_lse = indexed_attention(
            query, keys, values, indices, offsets, scale=0.3, window=window or None
        )  # held to brute force in test_indexed.py
        assert torch.allclose(out.cpu(), right, atol=3e-6)
        assert torch.allclose(lse.cpu(), right_lse, atol=3e-6)
