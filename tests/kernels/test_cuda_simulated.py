"""Runs `tests/kernels/cuda` under Numba's simulator, which is chosen before numba is imported: its own process."""

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
# a process for each of these and one for the others: parts of about a minute, so that they take every core
LONG = ("test_attention.py", "test_encode.py")
OTHERS = sorted(path.name for path in FOLDER.glob("test_*.py") if path.name not in LONG)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("files", [*([name] for name in LONG), OTHERS], ids=[*LONG, "others"])
def test_kernels_under_the_simulator(files):
    pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")
    run = subprocess.run(
        [*PYTEST, *(str(FOLDER / file) for file in files)],
        env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parent.parent.parent, capture_output=True, text=True, timeout=850, check=False,
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
