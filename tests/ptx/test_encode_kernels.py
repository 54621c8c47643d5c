"""The kernels that fill the cache, as PTX: codes against the nearest centroid in float64, slots bit for bit."""

import pytest
import torch

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.kernels.cuda.device import SIMULATED
from ptx.encoded import Case, check
from ptx.product import slots

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.xdist_group("ptx"),  # one process compiles the kernels, not each its own
]
many = [pytest.mark.slow, pytest.mark.ci]


def test_codes_of_8_bits_in_transposed_pages(device):
    check(Case())
    assert device.names == ["encode_kernel"]


@pytest.mark.parametrize("case", [
    Case(nbits=4, layout="row", ids=torch.int64), Case(nbits=6, d_sub=4, subspaces=8), Case(nbits=3, page_size=10),
    Case(nbits=6, layout="row", dtype=torch.bfloat16), Case(nbits=4, dtype=torch.float32, permuted=False),
    Case(nbits=8, d_sub=1, layout="row", page_size=40),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("capability", [pytest.param((8, 0), marks=pytest.mark.slow), pytest.param((9, 0), marks=many)])
def test_other_codes(case, capability, device):
    device.capability = capability
    check(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float32, marks=many)])
def test_slots(dtype, device):
    slots(dtype)
    assert device.names == ["slots_kernel"]
