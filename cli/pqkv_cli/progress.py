"""Progress on stderr: a bar with an estimate on a terminal, a line per stage elsewhere; stdout stays for results."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Estimate


class ProgressBar:
    """One bar for the stage under way, `with` around the work."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            Estimate(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._stage: str | None = None
        self._task = None
        self._began = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of `stage`."""
        if stage != self._stage:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._stage, self._began = stage, time.perf_counter()
            self._task = self._bar.add_task(stage, total=total)
            if not self.console.is_terminal:
                self.console.print(stage, highlight=False)
        if self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def say(self, message: str) -> None:
        """A line that stays."""
        self.console.print(message, highlight=False)
