"""What a launch makes of errors of the driver and the compiler: no GPU needed, the kernel is played."""

import re
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.cell import run_cell
from pqkv.errors import KernelError
from pqkv.kernels.cuda import launch as module
from pqkv.kernels.cuda.device import SIMULATED
from pqkv.kernels.cuda.launch import array, launch, signature, words

pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulator has no driver")


def error_of(module):
    return type("CudaAPIError", (Exception,), {"__module__": module})("[2] Call to cuModuleLoad: OUT_OF_MEMORY\nmore")


@pytest.fixture(autouse=True)
def default_stream(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))


@pytest.fixture
def played(monkeypatch):
    """Whatever is launched does this instead."""

    def play(start):
        monkeypatch.setattr(module, "_starter", lambda kernel, kinds: start)

    return play


def failing(error):
    def start(*arguments):
        raise error

    return start


@pytest.mark.parametrize("module_name", ["numba.cuda.cudadrv.driver", "cuda.core"])
def test_an_error_of_the_driver_fails_its_cell_and_no_more(module_name, played):
    played(failing(error_of(module_name)))
    with pytest.raises(KernelError, match=r"CUDA: CudaAPIError: \[2\] Call to cuModuleLoad: OUT_OF_MEMORY more$"):
        launch(None, (1,), 32)
    record = run_cell(lambda: launch(None, (1,), 32), kind="bench", config={}, seed=0, env={}, git={})
    assert record.status == "failed"
    assert record.error.startswith("CUDA: CudaAPIError")


def test_an_error_of_ours_is_not_hidden(played):
    played(failing(TypeError("wrong argument")))
    with pytest.raises(TypeError, match="wrong argument"):
        launch(None, (1,), 32)


def test_an_array_is_seven_words_and_a_number_one(played):
    seen = []
    played(lambda *given: seen.append(given))
    halves = torch.zeros(3, 4, dtype=torch.bfloat16)
    turned = torch.arange(6.0).reshape(2, 3).T
    flat = array(turned)
    launch(None, (5, 2), 64, words(halves), 9, flat)
    ((stream, grid, block, numbers),) = seen
    assert (stream, grid, block) == (0, (5, 2), 64)
    assert numbers[:7] == [0, 0, 6, 4, halves.data_ptr(), 6, 4]
    assert numbers[7] == 9
    assert numbers[8:] == [0, 0, 6, 4, flat.tensor.data_ptr(), 6, 4]
    assert flat.tensor.flatten().tolist() == [0, 3, 1, 4, 2, 5]  # in the order of the elements, so a copy, kept alive
    with pytest.raises(KernelError, match=r"3 elements of torch.int16 are no whole number of 4-byte words"):
        words(torch.zeros(3, dtype=torch.int16))


def test_a_tuple_is_the_words_of_its_parts(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "_starter", lambda kernel, kinds: lambda *given: seen.append((kinds, given[-1])))
    flat = array(torch.zeros(2))
    launch(None, (1,), 32, 5, (flat, 7), (), flat)
    assert seen == [(("integer", (torch.float32, "integer"), (), torch.float32), [5, *flat.words, 7, *flat.words])]


def test_compiled_code_takes_what_is_handed_over():
    """The parameters of the PTX are 64 bits each, seven for an array and one for a number."""
    from numba import cuda
    from numba import types as of_numba

    def kernel(bytes_, halves, count, nothing, longs, pair):
        if count:
            longs[0] = bytes_[0] + longs[1] + pair[1]

    types = signature((torch.uint8, torch.float16, "integer", (), torch.int64, (torch.float32, "integer")))
    ptx, _ = cuda.compile_ptx(kernel, of_numba.void(*types), cc=(9, 0))
    entry = re.search(r"\.entry [^(]*\(([^)]*)\)", ptx)[1]
    widths = re.findall(r"\.param \.([a-z0-9]+)", entry)
    assert len(widths) == 7 + 7 + 1 + 0 + 7 + (7 + 1)
    assert {width[1:] for width in widths} == {"64"}
