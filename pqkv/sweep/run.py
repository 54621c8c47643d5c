"""A sweep on one machine: cells in child processes, each watched for its time and its resident memory."""

from __future__ import annotations

import selectors
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pqkv.lock import Holder
from pqkv.sweep.cells import SweepCell
from pqkv.sweep.ledger import Claim, Ledger, Running
from pqkv.sweep.process import Limits, Over, Process

_TICK = 0.1  # seconds between two looks at resident memory


@dataclass(frozen=True, slots=True)
class Terms:
    """How cells are run: processes at once and threads of each, whether a process runs one cell only, limits."""

    jobs: int
    threads: int
    own_process: bool
    limits: Limits


def run_sweep(cells: Iterable[SweepCell], ledger: Ledger, terms: Terms) -> None:
    """Run every cell that is not over. Returns when all are, those that another sweep holds included: what it leaves
    behind is taken over. Cells are asked for as processes become free, and none is kept.
    """
    drive(cells, _Pool(ledger, terms), ledger)


class Pool(Protocol):
    """What runs cells: processes here, or a cluster."""

    @property
    def busy(self) -> bool:
        """Whether a cell is under way."""
        ...

    def offer(self, cell: SweepCell, waiting: list[SweepCell]) -> None:
        """Run a cell unless it is over; one that another sweep runs is put with those `waiting`."""
        ...

    def wait(self, elsewhere: int) -> None:
        """Listen for a moment, and look after what runs; `elsewhere` cells are held by other sweeps."""
        ...

    def close(self) -> None:
        """Stop what runs."""
        ...


def drive(cells: Iterable[SweepCell], pool: Pool, ledger: Ledger) -> None:
    """Offer every cell, and those that another sweep holds again until they are over; see `run_sweep`."""
    waiting: list[SweepCell] = []
    try:
        for cell in cells:
            pool.offer(cell, waiting)
        while waiting or pool.busy:
            held, waiting = waiting, []
            for cell in held:
                pool.offer(cell, waiting)
            pool.wait(len(waiting))
    finally:
        pool.close()
        ledger.close()


class _Pool:
    def __init__(self, ledger: Ledger, terms: Terms) -> None:
        self._ledger, self._terms = ledger, terms
        self._claims: dict[Process, Claim | None] = {}
        self._selector = selectors.DefaultSelector()

    @property
    def busy(self) -> bool:
        return any(process.busy for process in self._claims)

    def offer(self, cell: SweepCell, waiting: list[SweepCell]) -> None:
        while not self._free():  # before the lock: a cell that is locked is begun
            self.wait(len(waiting))
        claim = self._ledger.claim(cell)
        if isinstance(claim, Holder):
            waiting.append(cell)
        elif claim is not None:
            process = self._idle(claim.log)
            self._claims[process] = claim
            process.give(cell, claim.folder, claim.log, claim.lock)

    def wait(self, elsewhere: int) -> None:
        self._selector.select(_TICK)
        for process in list(self._claims):
            if over := process.poll(self._terms.limits):
                self._end(process, over)
        self._ledger.beat()
        now = time.monotonic()
        self._ledger.show(
            [
                Running(claim.cell.label, process.stage, now - process.given, process.resident)
                for process, claim in self._claims.items()
                if claim is not None
            ],
            elsewhere,
        )

    def close(self) -> None:
        for process in self._claims:
            process.stop()
        self._claims.clear()
        self._selector.close()

    def _free(self) -> bool:
        return len(self._claims) < self._terms.jobs or not all(process.busy for process in self._claims)

    def _idle(self, log: Path) -> Process:
        """A process that has nothing to do."""
        for process in self._claims:
            if not process.busy:
                return process
        started = Process(self._terms.threads, log)
        self._claims[started] = None
        self._selector.register(started, selectors.EVENT_READ)
        return started

    def _end(self, process: Process, over: Over) -> None:
        claim, self._claims[process] = self._claims[process], None
        if over.gone or self._terms.own_process:
            del self._claims[process]
            self._selector.unregister(process)
            process.stop()
        if claim is not None:
            self._ledger.settle(claim, over.found, over.cause, over.starting)
