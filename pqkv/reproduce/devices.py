"""Where the cells of an experiment on kernels are run."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pqkv.env import environment, machine_name
from pqkv.kernels import choose_backend
from pqkv.reproduce.tables import Row


def devices() -> list[str]:
    """The processor, and a GPU that backend `cuda` runs on, where there is one."""
    found = ["cpu"]
    if torch.cuda.is_available() and choose_backend("cuda", torch.device("cuda"), torch.float32).note is None:
        found.append("cuda")
    return found


def machines() -> Iterator[tuple[str, str]]:
    """`devices`, each with the name of the machine that a time on it is of: a processor's is not of the GPU beside."""
    env = environment()
    for device in devices():
        yield device, machine_name({**env, "gpus": []} if device == "cpu" else env)


def measured_on(device: str, row: Row) -> Row:
    """A claim's row; what was measured on a GPU goes to its own column too."""
    return row | {"gpu": row["ours"]} if device == "cuda" else row
