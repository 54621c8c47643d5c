"""The naive kernel and that of one warp a row as PTX, launched by their own host code, against attention in float64."""

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.kernels.cuda import naive, warp
from pqkv.kernels.cuda.device import SIMULATED

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.xdist_group("ptx"),  # one process compiles the kernels, not each its own
]
ALONE = Spec(
    context=(0, 1, 33, 65), heads=2, group=2, head_dim=64, nbits=None, layouts=("row", "row"), dtype=torch.float32,
    page_size=32, unused="poison",
)  # fmt: skip


def check(batch, found, window):
    expected, expected_lse = brute_force(batch, 0.125, window)
    for one, right in zip(found, (expected, expected_lse), strict=True):
        np.testing.assert_allclose(one.double().numpy(), right, atol=1e-5)


@pytest.mark.parametrize("window", [None, 40])
def test_the_naive_kernel(window, device):
    batch = build(ALONE)
    check(batch, naive.attention(*batch.inputs, scale=0.125, window=window), window)
    assert device.names == ["naive_kernel"]


@pytest.mark.parametrize("window", [None, 40])
def test_one_warp_a_row(window, device):
    batch = build(ALONE)
    check(batch, warp.decode_by_warps(batch.query, batch.pages, scale=0.125, window=window), window)
    assert device.names == ["warp_kernel"]
