"""Runs `tests/kernels/cuda` under Numba's simulator, which is chosen before numba is imported: its own process.

A few cases in `make test`, all of them in `make test-ci`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pqkv.errors import KernelError
from pqkv.kernels import choose_backend

FOLDER = Path(__file__).parent / "cuda"
PYTEST = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
FEW = (
    "test_exact_pages or test_centroids_of_four or test_splits_change or test_what_the_naive or (0 and fp16_tables)"
    " or drift or two_warps_that or cannot_take or (many and test_any_number_of_pairs)"
)
# the whole file in parts of some minutes at most, so that it takes every core (`every_length` a GPU alone runs)
PARTS = ("every_layout", "all_of_it or served_beside or turns or drift or octaves")
everything = [pytest.mark.slow, pytest.mark.ci, pytest.mark.timeout(1500)]


@pytest.mark.parametrize(("file", "selection"), [
    pytest.param("test_attention.py", FEW, id="attention, a few"),
    *(pytest.param("test_attention.py", part, marks=everything, id=f"attention, {part}") for part in PARTS),
    pytest.param("test_attention.py", f"not ({' or '.join(PARTS)})", marks=everything, id="attention, the rest"),
    pytest.param("test_launches.py", "", id="launches"),
    pytest.param("test_warp.py", "", id="one warp a row"),
    pytest.param("test_parts.py", "", marks=everything, id="parts"),
    pytest.param("test_encode.py", "", marks=everything, id="encode"),
    pytest.param("test_faulty_kernels.py", "max or aliased", id="faults, a few"),
    pytest.param("test_faulty_kernels.py", "", marks=everything, id="faults"),
])  # fmt: skip
def test_kernels_under_the_simulator(file, selection):
    pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")
    run = subprocess.run(
        [*PYTEST, "-k", selection, str(FOLDER / file)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parent.parent.parent, capture_output=True, text=True, timeout=1450, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", run.stdout).group(1)) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_backend_that_cannot_run_says_why_and_what_would_help():
    chosen = choose_backend("cuda", torch.device("cpu"), torch.float32)
    assert chosen.name == "cpu"
    assert "not on an NVIDIA GPU" in chosen.note
    with pytest.raises(KernelError, match="backend 'cuda' cannot run: the tensors are on cpu"):
        choose_backend("cuda", torch.device("cpu"), torch.float32, fallback=False)
