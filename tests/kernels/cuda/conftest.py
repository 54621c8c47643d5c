"""These tests run kernels: on a GPU where there is one, else under Numba's simulator in a process of their own.

`tests/kernels/test_cuda_simulated.py` starts that process; without it and without a GPU they are skipped.
"""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))  # `batches` and its brute force

SIMULATED = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"
HERE = Path(__file__).parent

if SIMULATED:
    from lanes import take_over

    take_over()


def pytest_collection_modifyitems(items):
    if SIMULATED or torch.cuda.is_available():
        return
    reason = "needs a GPU or NUMBA_ENABLE_CUDASIM=1 (test_cuda_simulated.py starts them so)"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def device():
    return torch.device("cpu" if SIMULATED else "cuda")


@pytest.fixture
def gpu_only():
    if SIMULATED:
        pytest.skip("too long for the simulator, which runs some 6,000 threads a second")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Under the simulator two warps a block, where a test does not say otherwise: threads are what its time goes to,
    and a reduction that stays in a warp is right where there is only one. The kernel of codes takes one: few tokens
    never reach its second warp, and `test_every_kernel_reduces_over_two_warps_that_both_hold_tokens` has many.
    """
    if SIMULATED:
        from pqkv.kernels.cuda import backend
        from pqkv.kernels.cuda.coded import CodedVariant

        for name, variant, block in (
            ("ExactVariant", backend.ExactVariant, 64),
            ("PlainVariant", backend.PlainVariant, 64),
            ("coded_variant", CodedVariant, 32),
        ):
            monkeypatch.setattr(backend, name, partial(variant, block=block))
