"""A process of a sweep as the sweep sees it: started, given a cell, heard, kept within limits and killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pqkv
from pqkv.amounts import bytes_text, seconds_text
from pqkv.errors import PqkvError
from pqkv.lock import Lock
from pqkv.sweep.cells import SweepCell
from pqkv.sweep.family import Family
from pqkv.sweep.outcome import Cause

_STARTING = 600.0  # seconds that a process may take to begin a cell
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a cell, in seconds and bytes."""

    seconds: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Over:
    """The end of a cell: what `worker.measure` returned, or as much of it as is known of one that was cut short; why it
    failed; seconds that its process took before it. `gone`: the process has ended.
    """

    found: dict[str, Any]
    cause: Cause | None
    starting: float
    gone: bool


class Process:
    """One child; `busy` while it has a cell, `stage` says how far that is, `resident` what it and its own children had
    in memory when it was last heard.
    """

    def __init__(self, threads: int, log: Path, cwd: Path | None = None) -> None:
        self.busy, self.stage = False, "starting"
        self.resident = 0
        self.given = 0.0  # when the cell was, by `time.monotonic`
        self._begun = self._starting = 0.0  # 0 while it starts; seconds that no cell accounts for yet
        self._peak, self._rest, self._ended, self._log = 0, b"", False, log
        ours, theirs = socket.socketpair()
        root = str(Path(pqkv.__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        limits = dict.fromkeys(_THREADS, str(threads))
        with log.open("ab") as said:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "pqkv.sweep.worker", str(theirs.fileno()), str(threads)],
                env={**os.environ, **limits, "PYTHONPATH": os.pathsep.join(paths)}, cwd=cwd,
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        theirs.close()
        ours.setblocking(False)
        self._channel = ours
        self._family = Family(self._child.pid)

    @property
    def alive(self) -> bool:
        """Whether it can be given a cell."""
        return self._child.poll() is None

    def fileno(self) -> int:
        """To wait for what it says."""
        return self._channel.fileno()

    def give(self, cell: SweepCell, folder: Path, log: Path, lock: Lock | None) -> None:
        """A cell to run into `folder`; the child holds its lock too."""
        job = {"command": cell.command, "settings": cell.settings, "folder": str(folder), "log": str(log)}
        self.busy, self.given, self._begun, self._peak, self._log = True, time.monotonic(), 0.0, 0, log
        with suppress(OSError):  # a child that has died is found out by whoever listens
            self._channel.setblocking(True)
            descriptors = [] if lock is None else [lock.fileno()]
            socket.send_fds(self._channel, [json.dumps(job).encode() + b"\n"], descriptors)
        self._channel.setblocking(False)

    def poll(self, limits: Limits) -> Over | None:
        """Hear what it said and look at its memory and time; its cell's end, where that has come. One that has ended,
        or was killed for going beyond a limit, is `gone`.
        """
        for message in self._heard():
            if "ready" in message:
                self._starting = message["ready"]
            elif "begun" in message:
                self._begun, self.stage = time.monotonic(), "begun"
            elif "stage" in message:
                self.stage = f"{message['stage']}: {message['done']} of {message['total']}"
            elif "over" in message:
                found = message["over"]
                found["peak_rss"] = max(found["peak_rss"] or 0, self._peak) or None
                starting, self._starting, self.busy = self._starting + found["loading"], 0.0, False
                return Over(found, "error" if found["status"] == "failed" else None, starting, gone=False)
        if self._ended:
            return self._cut("died", f"{self._ending()}{_last_words(self._log)}")
        self.resident = self._family.resident()
        self._peak = max(self._peak, self.resident)
        return self._beyond(limits) if self.busy else None

    def _beyond(self, limits: Limits) -> Over | None:
        """The end of a cell that goes beyond a limit."""
        now = time.monotonic()
        if self.resident > limits.bytes:
            said = f"{bytes_text(self.resident)} were resident, and a cell may have {bytes_text(limits.bytes)}"
            return self._cut("memory", said)
        if self._begun and now - self._begun > limits.seconds:
            return self._cut("time", f"it ran longer than the {seconds_text(limits.seconds)} that a cell may take")
        if not self._begun and now - self.given > _STARTING:
            return self._cut("time", f"its process had not begun it after {seconds_text(_STARTING)}")
        return None

    def _cut(self, cause: Cause, reason: str) -> Over:
        took = time.monotonic() - (self._begun or self.given)
        self.stop()
        return Over(failed(reason, took, self._peak or None), cause, self._starting, gone=True)

    def _heard(self) -> list[dict[str, Any]]:
        """What it said since the last call."""
        try:
            data = self._channel.recv(1 << 20)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        self._ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _ending(self) -> str:
        """How a child that has ended did, in words."""
        code = self._child.wait()
        if code < 0:
            return f"its process was killed by signal {-code}"
        return f"its process ended with exit code {code}"

    def stop(self) -> None:
        """End it and what it started, at once."""
        self._family.kill()
        self._channel.close()
        self._child.wait()


def failed(reason: str, seconds: float, peak: int | None = None) -> dict[str, Any]:
    """What `worker.measure` returns, of a cell that came to no end."""
    return {
        "status": "failed", "reason": reason, "seconds": seconds, "peak_rss": peak, "measured": False, "records": [],
    }  # fmt: skip


def threads_each(asked: int | None, jobs: int, cores: int) -> int:
    """Threads of each of `jobs` processes. Raises `PqkvError` for more than there are cores."""
    if asked is not None and asked > cores:
        raise PqkvError(f"threads: {asked} are more than the {cores} cores that pqkv may use here")
    return asked or max(1, cores // jobs)


def _last_words(log: Path) -> str:
    """The last line of a log, as the end of a sentence."""
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f": {lines[-1].strip()[:300]}" if lines else ""
