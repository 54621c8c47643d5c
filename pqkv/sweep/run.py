"""A sweep on one machine: cells in child processes, each watched for its time and its resident memory."""

from __future__ import annotations

import selectors
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqkv.amounts import bytes_text, seconds_text
from pqkv.lock import Holder
from pqkv.sweep.cells import SweepCell
from pqkv.sweep.ledger import Claim, Ledger, Running
from pqkv.sweep.outcome import Cause
from pqkv.sweep.process import Process

_TICK = 0.1  # seconds between two looks at resident memory
_POLL = 0.5  # seconds between two looks at cells that another sweep runs
_STARTING = 600.0  # seconds that a process may take to begin a cell


@dataclass(frozen=True, slots=True)
class Terms:
    """How cells are run: processes at once and threads of each, whether a process runs one cell only, limits of a cell
    in seconds and bytes.
    """

    jobs: int
    threads: int
    own_process: bool
    seconds: float
    bytes: float


def run_sweep(cells: Iterable[SweepCell], ledger: Ledger, terms: Terms) -> None:
    """Run every cell that is not over. Returns when all are, those that another sweep holds included: what it leaves
    behind is taken over. Cells are asked for as processes become free, and none is kept.
    """
    pool = _Pool(ledger, terms)
    waiting: list[SweepCell] = []
    try:
        for cell in cells:
            pool.offer(cell, waiting)
        while waiting or pool.busy:
            held, waiting = waiting, []
            for cell in held:
                pool.offer(cell, waiting)
            pool.wait(_POLL)
    finally:
        pool.close()
        ledger.close()


class _Pool:
    def __init__(self, ledger: Ledger, terms: Terms) -> None:
        self._ledger, self._terms = ledger, terms
        self._processes: list[Process] = []
        self._selector = selectors.DefaultSelector()
        self._elsewhere = 0

    @property
    def busy(self) -> bool:
        return any(process.claim is not None for process in self._processes)

    def offer(self, cell: SweepCell, waiting: list[SweepCell]) -> None:
        """Run a cell unless it is over; one that another sweep runs is put with those `waiting`."""
        self._elsewhere = len(waiting)
        while not self._free():  # before the lock: a cell that is locked is begun
            self.wait(_TICK)
        claim = self._ledger.claim(cell)
        if isinstance(claim, Holder):
            waiting.append(cell)
        elif claim is not None:
            self._process(claim.log).give(claim)

    def wait(self, seconds: float) -> None:
        """Listen for so long, or until something was heard; look after limits and locks."""
        for key, _ in self._selector.select(min(seconds, _TICK)):
            self._listen(key.fileobj)  # type: ignore[arg-type] # what was registered
        for process in list(self._processes):
            if process.claim is not None:
                self._watch(process, process.claim)
        self._ledger.beat()
        now = time.monotonic()
        self._ledger.show(
            [
                Running(process.claim.cell.label, process.stage, now - process.given, process.resident())
                for process in self._processes
                if process.claim is not None
            ],
            self._elsewhere,
        )

    def close(self) -> None:
        for process in self._processes:
            process.stop()
        self._processes.clear()
        self._selector.close()

    def _free(self) -> bool:
        return len(self._processes) < self._terms.jobs or any(process.claim is None for process in self._processes)

    def _process(self, log: Path) -> Process:
        """One that has nothing to do."""
        for process in self._processes:
            if process.claim is None:
                return process
        started = Process(self._terms.threads, log)
        self._processes.append(started)
        self._selector.register(started, selectors.EVENT_READ)
        return started

    def _listen(self, process: Process) -> None:
        messages = process.heard()
        if messages is None:
            claim = process.claim
            ending = process.ending()
            self._drop(process)
            if claim is not None:
                self._fail(claim, process, "died", f"{ending}{_last_words(claim.log)}")
            return
        for message in messages:
            self._hear(process, message)

    def _hear(self, process: Process, message: dict[str, Any]) -> None:
        if "ready" in message:
            process.starting = message["ready"]
        elif "begun" in message:
            process.begun, process.stage = time.monotonic(), "begun"
        elif "stage" in message:
            process.stage = f"{message['stage']}: {message['done']} of {message['total']}"
        elif "over" in message and process.claim is not None:
            found, claim = message["over"], process.claim
            found["peak_rss"] = max(found["peak_rss"] or 0, process.peak) or None
            starting, process.starting = process.starting + found["loading"], 0.0
            process.claim = None
            cause: Cause | None = "error" if found["status"] == "failed" else None
            if self._terms.own_process:
                self._drop(process)
            self._ledger.settle(claim, found, cause, starting)

    def _watch(self, process: Process, claim: Claim) -> None:
        """Kill a process whose cell goes beyond a limit."""
        resident, now = process.resident(), time.monotonic()
        took = now - process.begun if process.begun else 0.0
        if resident > self._terms.bytes:
            cause: Cause = "memory"
            said = f"{bytes_text(resident)} were resident, and a cell may have {bytes_text(self._terms.bytes)}"
        elif took > self._terms.seconds:
            cause, said = "time", f"it ran longer than the {seconds_text(self._terms.seconds)} that a cell may take"
        elif not process.begun and now - process.given > _STARTING:
            cause, said = "time", f"its process had not begun it after {seconds_text(_STARTING)}"
        else:
            return
        self._drop(process)
        self._fail(claim, process, cause, said)

    def _fail(self, claim: Claim, process: Process, cause: Cause, reason: str) -> None:
        took = time.monotonic() - (process.begun or process.given)
        found = {
            "status": "failed", "reason": reason, "seconds": took, "peak_rss": process.peak or None,
            "measured": False, "records": [],
        }  # fmt: skip
        self._ledger.settle(claim, found, cause, process.starting)

    def _drop(self, process: Process) -> None:
        self._selector.unregister(process)
        self._processes.remove(process)
        process.stop()


def _last_words(log: Path) -> str:
    """The last line of a log, as the end of a sentence."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f": {lines[-1].strip()[:300]}" if lines else ""
