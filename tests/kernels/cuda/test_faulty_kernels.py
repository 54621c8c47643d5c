"""The naive kernel with each of its faults, against the emulation that CPU runs use."""

import numpy as np
import pytest
import torch
from batches import Spec, build

from pqkv.kernels import choose_backend
from pqkv.kernels.cuda.naive import faulty_attention
from pqkv.kernels.faults import FAULTS, Fault
from pqkv.kernels.faults.backend import _emulated

SPEC = Spec(
    context=(0, 1, 33, 90), nbits=None, layouts=("row", "row"), heads=1, group=2, head_dim=40, dtype=torch.float32,
    page_size=16, unused="poison",
)  # fmt: skip
KERNELS = [
    Fault("sound", "", block=64),
    Fault("max", "", block=64, own_warp_max=True),
    Fault("sum", "", block=64, own_warp_sum=True),
    Fault("dropped", "", block=32, room=64, past_room="dropped"),
    Fault("aliased", "", block=32, room=64, past_room="aliased"),
    Fault("all", "", block=64, room=64, past_room="dropped", own_warp_max=True, own_warp_sum=True),
]


@pytest.mark.parametrize("fault", KERNELS, ids=lambda f: f.name)
def test_a_faulty_kernel_is_what_the_emulation_says(fault, device):
    batch = build(SPEC)
    expected, expected_lse = _emulated(batch.query, batch.pages, fault, 0.2, None)
    out, lse = faulty_attention(batch.query.to(device), batch.pages.to(device), fault, scale=0.2)
    # a sequence without tokens divides nothing by nothing in neither
    np.testing.assert_allclose(out.cpu().numpy(), expected.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lse.cpu().numpy(), expected_lse.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_on_a_gpu_is_the_same_fault(name, device, gpu_only):
    on_codes = not FAULTS[name].in_kernel
    spec = SPEC.but(context=(1, 33, 2049, 2300), heads=2, head_dim=64, page_size=64)
    if on_codes:
        spec = spec.but(context=(64, 640), nbits=8, layouts=("transposed", "transposed"), residual=(3, 70))
    run, other = (build(spec) for _ in range(2))  # a fault may write into unread slots
    expected, _ = choose_backend(name, torch.device("cpu"), torch.float32).run(*run.inputs, scale=0.125)
    inputs = [None if part is None else part.to(device) for part in other.inputs]
    out, _ = choose_backend(name, device, torch.float32).run(*inputs, scale=0.125)
    np.testing.assert_allclose(out.cpu().numpy(), expected.numpy(), rtol=1e-3, atol=1e-4)
