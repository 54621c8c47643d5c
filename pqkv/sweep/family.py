"""A process and what it started: what all of them have in memory, and their end."""

from __future__ import annotations

import time
from contextlib import suppress

import psutil

_LOOK = 1.0  # seconds between two looks for children: each goes through every process of the machine


class Family:
    """A process by its number, with its children and theirs."""

    def __init__(self, process: int) -> None:
        self._parent = psutil.Process(process)
        self._below: list[psutil.Process] = []
        self._looked = -_LOOK

    def resident(self) -> int:
        """Bytes in memory now, 0 once all have ended; of children that are younger than a second not always."""
        if time.monotonic() - self._looked >= _LOOK:
            self._below, self._looked = self._children(), time.monotonic()
        total = 0
        for one in (self._parent, *self._below):
            with suppress(psutil.Error):
                total += one.memory_info().rss
        return total

    def kill(self) -> None:
        """End all of them at once, children first."""
        for one in (*self._children(), self._parent):
            with suppress(psutil.Error):
                one.kill()

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.Error):
            return list(self._parent.children(recursive=True))
        return []
