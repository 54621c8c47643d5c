"""What runs on a node of a Ray cluster: one cell in a watched child process, its records sent back to the driver."""

from __future__ import annotations

import functools
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqkv.reasons import reason
from pqkv.record import Record, RecordStore
from pqkv.sweep.cells import SweepCell
from pqkv.sweep.placed import unpacked
from pqkv.sweep.process import Limits, Over, Process, failed

_TICK = 0.1


@dataclass(frozen=True, slots=True)
class Sent:
    """What a node sends back: the end of a cell, its records, and what its process said."""

    over: Over
    records: list[dict[str, Any]]
    log: bytes


def run_cell(cell: SweepCell, threads: int, own_process: bool, limits: Limits, files: bytes) -> Sent:
    """Run `cell` here. The child process stays for the next cell of this worker of Ray, its model loaded, unless every
    cell has a process of its own. What a node cannot do (a full disk, a file that it does not take) is that cell's
    failure: an error of its own would reach the driver only where it can be pickled.
    """
    clock = time.monotonic()
    try:
        return _run_cell(cell, threads, own_process, limits, files)
    except Exception as error:  # noqa: BLE001 - whatever a node cannot do
        found = failed(f"its node could not run it: {type(error).__name__}: {reason(error)}", time.monotonic() - clock)
        return Sent(Over(found, "error", 0.0, gone=True), [], traceback.format_exc().encode())


def _run_cell(cell: SweepCell, threads: int, own_process: bool, limits: Limits, files: bytes) -> Sent:
    cwd = unpacked(files)
    with tempfile.TemporaryDirectory(prefix="pqkv-cell-") as where:
        folder, log = Path(where) / "records", Path(where) / "log"
        log.touch()
        if not own_process and not _kept(threads, cwd).alive:
            _kept.cache_clear()
        child = Process(threads, log, cwd) if own_process else _kept(threads, cwd)
        child.give(cell, folder, log, None)
        over = None
        while over is None:
            over = child.poll(limits)
            time.sleep(_TICK if over is None else 0)
        if own_process or over.gone:
            child.stop()
            _kept.cache_clear()
        records = [record.model_dump(mode="json") for record in RecordStore(folder).load_all()]
        return Sent(over, records, log.read_bytes())


def record_of(sent: dict[str, Any]) -> Record:
    """A record as it was sent; raises `RecordError` for one that is not sound."""
    return Record.model_validate(sent)


@functools.cache
def _kept(threads: int, cwd: Path) -> Process:
    """The child of this worker of Ray."""
    return Process(threads, Path("/dev/null"), cwd)
