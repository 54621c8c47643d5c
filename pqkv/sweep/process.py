"""A process of a sweep as the sweep sees it: started, given a cell, heard, watched and killed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

import pqkv
from pqkv.errors import PqkvError
from pqkv.sweep.ledger import Claim

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Process:
    """One child. `claim` is what it works on, `begun` when it began (`time.monotonic`), 0 while it starts."""

    def __init__(self, threads: int, log: Path) -> None:
        self.threads = threads
        self.claim: Claim | None = None
        self.given = self.begun = 0.0
        self.starting = 0.0  # seconds before its first cell, not yet accounted to one
        self.stage = "starting"
        self.peak = 0
        self._rest = b""
        ours, theirs = socket.socketpair()
        root = str(Path(pqkv.__file__).resolve().parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        limits = dict.fromkeys(_THREADS, str(threads))
        with log.open("ab") as said:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "pqkv.sweep.worker", str(theirs.fileno()), str(threads)],
                env={**os.environ, **limits, "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        theirs.close()
        ours.setblocking(False)
        self._channel = ours
        self._seen = psutil.Process(self._child.pid)

    def fileno(self) -> int:
        """To wait for what it says."""
        return self._channel.fileno()

    def give(self, claim: Claim) -> None:
        """A cell to run; the child holds its lock too."""
        cell, lock = claim.cell, claim.lock
        job = {
            "command": cell.command, "settings": cell.settings, "folder": str(claim.folder), "log": str(claim.log),
        }  # fmt: skip
        self.claim, self.given, self.begun, self.peak = claim, time.monotonic(), 0.0, 0
        with suppress(OSError):  # a child that has died is found out by whoever listens
            self._channel.setblocking(True)
            socket.send_fds(self._channel, [json.dumps(job).encode() + b"\n"], [lock.fileno()])
        self._channel.setblocking(False)

    def heard(self) -> list[dict[str, Any]] | None:
        """What it said since the last call; None when it has ended."""
        try:
            data = self._channel.recv(1 << 20)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def resident(self) -> int:
        """Bytes in memory now, of the child and what it started; 0 once it has ended."""
        total = 0
        with suppress(psutil.Error):
            for one in [self._seen, *self._seen.children(recursive=True)]:
                with suppress(psutil.Error):
                    total += one.memory_info().rss
        self.peak = max(self.peak, total)
        return total

    def ending(self) -> str:
        """How a child that has ended did, in words."""
        code = self._child.wait()
        if code < 0:
            return f"its process was killed by signal {-code}"
        return f"its process ended with exit code {code}"

    def stop(self) -> None:
        """End it and what it started, at once."""
        with suppress(psutil.Error):
            for one in [*self._seen.children(recursive=True), self._seen]:
                with suppress(psutil.Error):
                    one.kill()
        self._channel.close()
        self._child.wait()


def threads_each(asked: int | None, jobs: int, cores: int) -> int:
    """Threads of each of `jobs` processes. Raises `PqkvError` for more than there are cores."""
    if asked is not None and asked > cores:
        raise PqkvError(f"threads: {asked} are more than the {cores} cores that pqkv may use here")
    return asked or max(1, cores // jobs)
