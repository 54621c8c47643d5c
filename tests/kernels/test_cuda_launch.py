"""What a launch makes of errors of the driver and the compiler: no GPU needed, the kernel is played."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.cell import run_cell
from pqkv.errors import KernelError
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.launch import launch

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator has no driver")


def error_of(module):
    return type("CudaAPIError", (Exception,), {"__module__": module})("[2] Call to cuModuleLoad: OUT_OF_MEMORY\nmore")


class Kernel:
    """A dispatcher whose start raises."""

    def __init__(self, error):
        self.error = error

    def __getitem__(self, how):
        def start(*arguments):
            raise self.error

        return start


@pytest.fixture(autouse=True)
def default_stream(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))


@pytest.mark.parametrize("module", ["numba.cuda.cudadrv.driver", "cuda.core"])
def test_an_error_of_the_driver_fails_its_cell_and_no_more(module):
    kernel = Kernel(error_of(module))
    with pytest.raises(KernelError, match=r"CUDA: CudaAPIError: \[2\] Call to cuModuleLoad: OUT_OF_MEMORY more$"):
        launch(kernel, (1,), 32)
    record = run_cell(lambda: launch(kernel, (1,), 32), kind="bench", config={}, seed=0, env={}, git={})
    assert record.status == "failed"
    assert record.error.startswith("CUDA: CudaAPIError")


def test_an_error_of_ours_is_not_hidden():
    with pytest.raises(TypeError, match="wrong argument"):
        launch(Kernel(TypeError("wrong argument")), (1,), 32)
