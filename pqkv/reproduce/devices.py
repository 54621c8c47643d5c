"""Where the cells of an experiment on kernels are run."""

from __future__ import annotations

import torch

from pqkv.kernels import choose_backend


def devices() -> list[str]:
    """The processor, and a GPU that backend `cuda` runs on, where there is one."""
    found = ["cpu"]
    if torch.cuda.is_available() and choose_backend("cuda", torch.device("cuda"), torch.float32).note is None:
        found.append("cuda")
    return found
