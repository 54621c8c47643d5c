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


@pytest.mark.parametrize(("spec", "asked"), [
    (EXACT.but(dtype=torch.float16, group=4, head_dim=128, context=(65,)), (128, 4)),
    (CODED.but(head_dim=128, heads=1, subspaces=(64, 64), context=(65,), sinks=None, residual=None), (128, 5)),
], ids=["exact", "coded"])  # fmt: skip
def test_kernels_that_the_assembler_is_asked_for_blocks_of(spec, asked, device):
    """What is executed is what runs, with what it asks for."""
    attend(spec)
    threads, blocks = asked
    assert f".maxntid {threads}, 1, 1\n.minnctapersm {blocks}\n" in device.asked[0](device.capability)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_queries_and_outputs_of_any_type_and_a_group_in_two_uneven_blocks(dtype, device):
    attend(EXACT.but(dtype=dtype, group=11, context=(0, 65), sinks=(1, 4), residual=(2, 3)))
    assert device.names == ["rows_kernel", "exact_kernel", "merge_kernel"]


SHORT = CODED.but(context=(0, 65, 130), sinks=None, residual=None)


@pytest.mark.parametrize("spec", [
    SHORT.but(turning=TURNING, gains=True), SHORT.but(turning=TURNING, gains=True, dtype=torch.float32, group=2),
], ids=["coded", "plain"])  # fmt: skip
@pytest.mark.slow
@pytest.mark.ci
def test_a_bias_by_position_and_gains(spec, device):
    attend(spec)


@pytest.mark.slow
@pytest.mark.ci
def test_codes_of_an_odd_width_in_float32(device):
    attend(SHORT.but(dtype=torch.float32, nbits=3, layouts=("row", "transposed"), group=2))


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("seed", [1, 2])
def test_a_window_in_any_order_of_warps(seed, device):
    device.seed = 1000 * seed
    attend(SHORT.but(context=(200, 65)), window=70)
