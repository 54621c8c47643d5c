"""The kernels of a decoding step as PTX, each launched by the backend itself, against attention in float64."""

import pytest
import torch
from batches import Spec
from served import TURNING

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.kernels.cuda.device import SIMULATED
from ptx.cases import attend

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.xdist_group("ptx"),  # one process compiles the kernels, not each its own
]

EXACT = Spec(
    context=(0, 1, 64, 65, 129), heads=1, group=2, head_dim=64, nbits=None, layouts=("row", "row"),
    dtype=torch.float32, unused="poison",
)  # fmt: skip


def test_exact_pages(device):
    attend(EXACT)
    assert device.names == ["exact_kernel", "merge_kernel"]


CODED = Spec(
    context=(0, 1, 63, 64, 65, 129), sinks=(0, 1, 2, 4, 4, 4), residual=(1, 2, 3, 1, 5, 2), heads=2, group=4,
    head_dim=64, nbits=8, subspaces=(32, 32), dtype=torch.float16, unused="poison",
)  # fmt: skip


def test_codes_of_8_bits_in_transposed_pages(device):
    """Four warps a block, lengths around a page, sinks and residual beside them."""
    attend(CODED)
    assert device.names == ["rows_kernel", "coded_kernel", "merge_kernel"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_queries_and_outputs_of_any_type_and_a_group_in_two_uneven_blocks(dtype, device):
    attend(EXACT.but(dtype=dtype, group=11, context=(0, 65), sinks=(1, 4), residual=(2, 3)))
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
    attend(SHORT.but(nbits=nbits, group=group, layouts=layouts))


@pytest.mark.slow
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("nbits", [8, 6, 4])
def test_codes_of_every_kind(nbits, group, layouts, capability, head_dim, device):
    device.capability = capability
    size = {"head_dim": head_dim, "subspaces": (head_dim // 2, head_dim // 2)}
    attend(SHORT.but(nbits=nbits, group=group, layouts=layouts, **size))


@pytest.mark.parametrize("spec", [
    SHORT.but(turning=TURNING, gains=True), SHORT.but(turning=TURNING, gains=True, dtype=torch.float32, group=2),
], ids=["coded", "plain"])  # fmt: skip
@pytest.mark.slow
@pytest.mark.ci
def test_a_bias_by_position_and_gains(spec, device):
    attend(spec)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("layout", ["row", "transposed"])
@pytest.mark.parametrize("nbits", [3, 8])
def test_codes_in_float32(nbits, layout, device):
    attend(SHORT.but(dtype=torch.float32, nbits=nbits, layouts=(layout, layout), group=2))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize(("dtype", "group"), [(torch.float16, 4), (torch.bfloat16, 1)])
def test_exact_pages_in_half_precision(dtype, group, device):
    attend(EXACT.but(dtype=dtype, group=group, context=(0, 33, 65)))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("seed", [1, 2])
def test_a_window_in_any_order_of_warps(seed, device):
    device.seed = 1000 * seed
    attend(SHORT.but(context=(200, 65)), window=70)
