import pytest
import torch


@pytest.fixture(autouse=True)
def nothing_is_ever_zero_by_luck():
    """Memory that torch hands out uninitialised holds NaN (floats) or the largest number (codes)."""
    torch.set_deterministic_debug_mode("error")
    assert torch.empty(3).isnan().all()
    assert torch.zeros(1, dtype=torch.uint8).new_empty(3).eq(255).all()
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """A page of four tokens is not worth waking a second thread for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
