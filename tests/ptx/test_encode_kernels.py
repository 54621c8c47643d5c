"""The kernels that fill the cache, as PTX: codes against the nearest centroid in float64, slots bit for bit."""

import pytest
import torch

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.encode import write_slots
from ptx.encoded import Case, check

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
    """A new token in the slot of each sequence; one outside is padding."""
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(4, 2, 1, 48, generator=draw).to(dtype) for _ in range(2))
    buffers = [torch.full((4, 2, 3, 48), -5.0).to(dtype) for _ in range(2)]
    expected = [buffer.clone() for buffer in buffers]
    positions = torch.tensor([2, -1, 3, 0], dtype=torch.int32)
    for buffer, new in zip(expected, (keys, values), strict=True):
        buffer[0, :, 2], buffer[3, :, 0] = new[0, :, 0], new[3, :, 0]
    write_slots(keys, values, *buffers, positions)
    assert device.names == ["slots_kernel"]
    for buffer, wanted in zip(buffers, expected, strict=True):
        assert torch.equal(buffer, wanted)
