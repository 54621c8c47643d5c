"""A process that runs cells, one at a time, for the sweep that started it: `python -m pqkv.sweep.worker SOCKET`.

Cells come as lines of JSON over a socket, each with the descriptor of its lock, which this process holds as well while
it works: a sweep that is killed leaves no cell that another could begin while it is still running. What is printed
goes to the cell's log. The process dies with its parent.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from pqkv.errors import PqkvError, memory_is_short
from pqkv.reasons import reason
from pqkv.record import Record, RecordStore
from pqkv.sweep.commands import COMMANDS, Kept, Report

_TELL = 0.5  # seconds between two messages of how far a cell is
_LINE = 1 << 20  # bytes of a message, at most


def main() -> None:
    """Serve cells until the socket closes."""
    start = time.perf_counter()
    _die_with_parent()
    for one in (signal.SIGINT, signal.SIGTERM):  # sent to all of a group: the sweep decides what becomes of a cell
        signal.signal(one, signal.SIG_IGN)
    channel = socket.socket(fileno=int(sys.argv[1]))
    import torch

    import pqkv.lab.run  # noqa: F401 - imports are the slow part of a small cell: done before its clock starts

    torch.set_num_threads(int(sys.argv[2]))
    kept = Kept()
    _send(channel, {"ready": time.perf_counter() - start})
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, _LINE, 1)
        if not data:
            return
        while not data.endswith(b"\n"):
            data += channel.recv(_LINE)
        job = json.loads(data)
        _send(channel, {"begun": True})
        _log_to(Path(job["log"]))
        try:
            found = measure(job["command"], job["settings"], Path(job["folder"]), kept, _Teller(channel))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        for descriptor in descriptors:
            os.close(descriptor)
        _send(channel, {"over": found})


def measure(command: str, settings: dict[str, Any], folder: Path, kept: Kept, tell: Report) -> dict[str, Any]:
    """Run one cell into `folder`; return status, reason, seconds, loading, peak_rss, measured and records as JSON holds
    them. An error of the cell's own is its outcome; so is any other, whose traceback goes to standard error.
    """
    from pqkv.quality.memory import peak_resident  # brings torch, which `main` has loaded by now

    _reset_peak()
    loaded, clock = kept.loading, time.perf_counter()
    store = CountedStore(folder)
    digests: list[str] = []
    failures: list[str] = []
    try:
        wanted = COMMANDS[command].configuration(settings)
        for record in COMMANDS[command].run(wanted, store, kept, tell):
            digests.append(record.digest)
            failures += [] if record.error is None else [record.error]
    except PqkvError as error:
        failures.append(" ".join(str(error).split()))
    except Exception as error:  # noqa: BLE001 - one cell's defect is not the sweep's
        traceback.print_exc()
        failures.append(f"memory ran short: {reason(error)}" if memory_is_short(error) else _named(error))
    loading = kept.loading - loaded
    return {
        "status": "failed" if failures or not digests else "ok",
        "reason": failures[0] if failures else None if digests else "the command made no record",
        "seconds": time.perf_counter() - clock - loading,
        "loading": loading,
        "peak_rss": peak_resident(),
        "measured": store.wrote > 0,
        "records": digests,
    }


class CountedStore(RecordStore):
    """A store that knows how many records it was given: the others were there."""

    wrote = 0

    def write(self, record: Record) -> Path:
        """As any store."""
        self.wrote += 1
        return super().write(record)


class _Teller:
    """Tells the sweep how far a cell is, not more often than it can be read."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel, self._told = channel, 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL:
            self._told = now
            _send(self._channel, {"stage": stage, "done": done, "total": total})


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {reason(error)}"


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


def _log_to(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _reset_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _die_with_parent() -> None:
    """Linux: be killed when the parent ends, however it does. Elsewhere the socket that closes ends the process."""
    parent = os.getppid()
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent or parent == 1:
            sys.exit(1)


if __name__ == "__main__":
    main()
