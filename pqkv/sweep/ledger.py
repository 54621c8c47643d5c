"""Which cells of a folder are over, whose turn it is, and what became of each: the same for every kind of worker."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pqkv.env import environment, machine_name
from pqkv.errors import ConfigError
from pqkv.lock import Holder, Lock, refusal, take
from pqkv.record import RecordStore, utc_now
from pqkv.sweep.cells import SweepCell
from pqkv.sweep.outcome import Cause, Outcome, Outcomes

BEAT = 5.0  # seconds between two heartbeats
_WRITING = 3600.0  # seconds that no file takes to be written


@dataclass(frozen=True, slots=True)
class Claim:
    """A cell whose lock is held: where its records go, and what it says."""

    cell: SweepCell
    lock: Lock
    folder: Path
    log: Path
    attempts: int  # before this one


@dataclass(slots=True)
class Running:
    """A cell under way, for people."""

    label: str
    stage: str
    seconds: float
    resident: int


@dataclass(slots=True)
class State:
    """Where a sweep stands. `found` were over when it came, `failed` counts theirs too."""

    total: int
    measured: int = 0
    found: int = 0
    failed: int = 0
    elsewhere: int = 0  # held by another sweep now
    running: list[Running] = field(default_factory=list)
    first_failure: str = ""

    @property
    def over(self) -> int:
        """Cells that are over."""
        return self.measured + self.found + self.failed


class Listener(Protocol):
    """Who is told of a sweep."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def show(self, state: State) -> None:
        """How it stands now."""


class Ledger:
    """The cells of one sweep in one folder, which others may share."""

    def __init__(self, folder: Path, total: int, listener: Listener, *, retry_failed: bool, threads: int) -> None:
        """Raises `ConfigError` where locks cannot be trusted, `RecordError` where records cannot be written."""
        if why := refusal(folder):
            raise ConfigError(
                f"{why}: give each machine a folder of its own on a local disk (with --shard i/n) and join them with "
                "pqkv merge"
            )
        RecordStore(folder).check_writable()
        self.folder, self.outcomes, self.state, self.listener = folder, Outcomes(folder), State(total), listener
        RecordStore(self.outcomes.folder).check_writable()
        _clear(folder)
        self._retry, self._threads = retry_failed, threads
        self._machine = machine_name(environment())
        self._claims: dict[str, Claim] = {}
        self._beaten = time.monotonic()

    def claim(self, cell: SweepCell) -> Claim | Holder | None:
        """The cell for us to run, who runs it already, or None where it is over."""
        digest = cell.digest
        before = self.outcomes.find(digest)
        if before is not None and not self._again(before):
            self._count_found(before)
            return None
        lock = take(self.outcomes.lock(digest))
        if isinstance(lock, Holder):
            return lock
        if lock.left_by is not None:
            self.listener.say(f"{cell.label}: took over the lock of {lock.left_by}, which is gone")
        now = self.outcomes.find(digest)
        attempts = 0 if before is None else before.attempts
        if now is not None and (not self._again(now) or now.attempts != attempts):  # another sweep was faster
            lock.release()
            self._count_found(now)
            return None
        folder = self.folder if cell.run == 1 else self.folder / f"run-{cell.run}"
        claim = Claim(cell, lock, folder, self.outcomes.log(digest), attempts)
        self._claims[digest] = claim
        return claim

    def settle(self, claim: Claim, found: dict[str, Any], cause: Cause | None, starting: float) -> None:
        """Keep what became of a cell, then give its lock back. `found` is as `worker.measure` returns it."""
        cell, failed = claim.cell, found["status"] == "failed"
        outcome = Outcome(
            digest=cell.digest, command=cell.command, settings=cell.settings, run=cell.run, context=cell.context,
            tokens=cell.tokens, alike=cell.alike, status=found["status"], cause=cause, reason=found["reason"],
            seconds=found["seconds"], starting=starting, peak_rss=found["peak_rss"], measured=found["measured"],
            records=tuple(found["records"]), machine=self._machine, threads=self._threads,
            attempts=claim.attempts + 1, finished_at=utc_now(),
        )  # fmt: skip
        self.outcomes.write(outcome)
        if not failed and claim.log.is_file() and not claim.log.stat().st_size:
            claim.log.unlink()
        self._claims.pop(cell.digest).lock.release()
        if failed:
            self._count_failure(outcome)
            self.listener.say(f"failed: {cell.label}: {outcome.reason} (log: {claim.log})")
        else:
            self.state.measured += 1

    def beat(self) -> None:
        """Heartbeats of all locks that are held, when they are due."""
        if time.monotonic() - self._beaten >= BEAT:
            self._beaten = time.monotonic()
            for claim in self._claims.values():
                claim.lock.beat()

    def close(self) -> None:
        """Give back the locks of cells that did not come to an end."""
        for claim in self._claims.values():
            claim.lock.release()
        self._claims.clear()

    def show(self, running: Iterable[Running], elsewhere: int) -> None:
        """Tell how it stands."""
        self.state.running, self.state.elsewhere = list(running), elsewhere
        self.listener.show(self.state)

    def _again(self, outcome: Outcome) -> bool:
        return outcome.status == "failed" and self._retry

    def _count_found(self, outcome: Outcome) -> None:
        if outcome.status == "failed":
            self._count_failure(outcome)
        else:
            self.state.found += 1

    def _count_failure(self, outcome: Outcome) -> None:
        self.state.failed += 1
        self.state.first_failure = self.state.first_failure or (outcome.reason or "")


def _clear(folder: Path) -> None:
    """Remove what killed processes left and nobody reads: halves of files, locks of what was finished."""
    for path in folder.rglob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _WRITING:
                path.unlink()
    for path in folder.rglob(".*.lock"):
        digest = path.name.split(".")[1]
        if any(path.with_name(f"{digest}{end}").exists() for end in (".json", ".cell.json")):
            lock = take(path)
            if isinstance(lock, Lock):
                lock.release()
