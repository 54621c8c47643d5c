"""The kernels of a decoding step as PTX, each launched by the backend itself, against attention in float64."""

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build
from served import TURNING

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.kernels.cuda.backend import attention
from pqkv.kernels.cuda.device import SIMULATED

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.xdist_group("ptx"),  # one process compiles the kernels, not each its own
]

EXACT = Spec(
    context=(0, 1, 64, 65, 129), heads=1, group=2, head_dim=64, nbits=None, layouts=("row", "row"),
    dtype=torch.float32, unused="poison",
)  # fmt: skip
# of the largest element of a row, and of lse: fp16 tables hold 11 bits of a centroid, and sums are in fp16x2
TOLERANCE = {torch.float32: (3e-5, 1e-5), torch.float16: (3e-3, 3e-3), torch.bfloat16: (1e-2, 3e-3)}


def check(spec, *, window=None):
    batch = build(spec)
    scale = spec.head_dim**-0.5
    out, lse = attention(*batch.inputs, scale=scale, window=window)
    expected, expected_lse = brute_force(batch, scale, window)
    bound, lse_bound = TOLERANCE[spec.dtype]
    size = np.maximum(np.abs(expected).max(-1, keepdims=True), 1e-6)
    assert (np.abs(out.double().numpy() - expected) / size).max() <= bound
    np.testing.assert_allclose(lse.double().numpy(), expected_lse, atol=lse_bound, rtol=1e-6)


def test_exact_pages(device):
    check(EXACT)
    assert device.names == ["exact_kernel", "merge_kernel"]


CODED = Spec(
    context=(0, 1, 63, 64, 65, 129), sinks=(0, 1, 2, 4, 4, 4), residual=(1, 2, 3, 1, 5, 2), heads=2, group=4,
    head_dim=64, nbits=8, subspaces=(32, 32), dtype=torch.float16, unused="poison",
)  # fmt: skip


def test_codes_of_8_bits_in_transposed_pages(device):
    """Four warps a block, lengths around a page, sinks and residual beside them."""
    check(CODED)
    assert device.names == ["rows_kernel", "coded_kernel", "merge_kernel"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_queries_and_outputs_of_any_type_and_a_group_in_two_uneven_blocks(dtype, device):
    check(EXACT.but(dtype=dtype, group=11, context=(0, 65), sinks=(1, 4), residual=(2, 3)))
    assert device.names == ["rows_kernel", "exact_kernel", "merge_kernel"]


many = [pytest.mark.slow, pytest.mark.ci]
SHORT = CODED.but(context=(0, 65, 130), sinks=None, residual=None)
LAYOUTS = [("transposed", "transposed"), ("row", "row"), ("row", "transposed"), ("transposed", "row")]


@pytest.mark.parametrize(("nbits", "group", "layouts", "capability"), [
    (6, 2, ("transposed", "row"), (8, 0)), (4, 1, ("row", "transposed"), (9, 0)), (8, 8, ("row", "row"), (8, 0)),
    (4, 4, ("transposed", "transposed"), (9, 0)), (6, 8, ("transposed", "transposed"), (9, 0)),
    (8, 1, ("transposed", "transposed"), (8, 0)), (8, 2, ("transposed", "transposed"), (9, 0)),
])  # fmt: skip
@pytest.mark.slow
@pytest.mark.ci
def test_codes_by_pairs(nbits, group, layouts, capability, device):
    device.capability = capability
    check(SHORT.but(nbits=nbits, group=group, layouts=layouts))


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("nbits", [8, 6, 4])
def test_codes_of_every_kind(nbits, group, layouts, capability, head_dim, device):
    device.capability = capability
    size = {"head_dim": head_dim, "subspaces": (head_dim // 2, head_dim // 2)}
    check(SHORT.but(nbits=nbits, group=group, layouts=layouts, **size))


@pytest.mark.parametrize("spec", [
    SHORT.but(turning=TURNING, gains=True), SHORT.but(turning=TURNING, gains=True, dtype=torch.float32, group=2),
], ids=["coded", "plain"])  # fmt: skip
@pytest.mark.slow
@pytest.mark.ci
def test_a_bias_by_position_and_gains(spec, device):
    check(spec)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("layout", ["row", "transposed"])
@pytest.mark.parametrize("nbits", [3, 8])
def test_codes_in_float32(nbits, layout, device):
    check(SHORT.but(dtype=torch.float32, nbits=nbits, layouts=(layout, layout), group=2))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("dtype", "group"), [(torch.float16, 4), (torch.bfloat16, 1)])
def test_exact_pages_in_half_precision(dtype, group, device):
    check(EXACT.but(dtype=dtype, group=group, context=(0, 33, 65)))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("seed", [1, 2])
def test_a_window_in_any_order_of_warps(seed, device):
    device.seed = 1000 * seed
    check(SHORT.but(context=(200, 65)), window=70)
