"""How a check keeps what it printed: a record with machine, versions and commit, where `-o FOLDER` says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pqkv.cell import run_cell
from pqkv.env import environment, git_state, machine_name
from pqkv.record import RecordStore


def keep(name: str, config: dict[str, Any], folder: Path | None, measure: Callable[[], list[dict[str, Any]]]) -> None:
    """Run `measure` and print its rows; with a folder they are a record there, in place of one of the same config."""
    env = environment()
    described = {"check": name, "machine": machine_name(env), "threads": torch.get_num_threads(), **config}
    record = run_cell(
        lambda: {"tables": {name: measure()}}, kind="check", config=described, seed=0, env=env, git=git_state(),
        store=RecordStore(folder) if folder else None, force=True,
    )  # fmt: skip
    for row in record.tables.get(name, []):
        print(row)
    if record.error:
        raise SystemExit(record.error)
