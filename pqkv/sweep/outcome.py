"""What became of a cell: a file each, beside the records that it made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pqkv.record import atomic_write

Cause = Literal["error", "died", "time", "memory"]


class Outcome(BaseModel):
    """A cell that is over. `seconds` are its own, `starting` those its process took before it (imports, the model; 0
    where an earlier cell had left both); `peak_rss` the most resident bytes its process had during the cell. `measured`
    says that figures were taken now, not found. `records` are digests of what it made, `attempts` counts tries.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    command: str
    settings: dict[str, Any]
    run: int
    context: int
    tokens: int
    alike: tuple[str, ...]
    status: Literal["ok", "failed"]
    cause: Cause | None = None
    reason: str | None = None
    seconds: float
    starting: float
    peak_rss: int | None
    measured: bool
    records: tuple[str, ...]
    machine: str
    threads: int
    attempts: int
    finished_at: str


class Outcomes:
    """The outcomes of a sweep's folder: `cells/<digest>.cell.json`, and `cells/<digest>.log` with what was said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "cells"

    def path(self, digest: str) -> Path:
        """Of an outcome."""
        return self.folder / f"{digest}.cell.json"

    def log(self, digest: str) -> Path:
        """What the processes of a cell wrote to their standard output and error."""
        return self.folder / f"{digest}.log"

    def lock(self, digest: str) -> Path:
        """The lock of a cell."""
        return self.folder / f".{digest}.lock"

    def find(self, digest: str) -> Outcome | None:
        """The outcome of a cell; None for one that is not over, or whose file is damaged: it is run again."""
        return _read(self.path(digest))

    def write(self, outcome: Outcome) -> None:
        """Keep an outcome, in one step."""
        payload = json.dumps(outcome.model_dump(mode="json"), indent=1, allow_nan=False) + "\n"
        atomic_write(self.path(outcome.digest), payload.encode())

    def all(self) -> Iterator[Outcome]:
        """Every sound one, by digest."""
        for path in sorted(self.folder.glob("*.cell.json")):
            if found := _read(path):
                yield found


def _read(path: Path) -> Outcome | None:
    try:
        found = Outcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
    return found if path.name == f"{found.digest}.cell.json" else None
