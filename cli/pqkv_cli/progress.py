"""Progress on stderr: a bar with an estimate on a terminal, lines with one elsewhere; stdout stays for results."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from pqkv_cli.output import console, echo, encodable
from pqkv_cli.stage_lines import INTERVAL, StageLines
from pqkv_cli.table import print_lines

_WIDE, _MIDDLING = 110, 60  # columns of a terminal with room for the bar itself, and for the time elapsed
_FIGURES = 28  # columns that the figures take at least
_FRAME = 0.05  # seconds between two updates of a bar


class ProgressBar:
    """One bar for the stage under way, `with` around the work; where there is no terminal, a line each `interval` s."""

    def __init__(self, interval: float = INTERVAL) -> None:
        out = console(stderr=True)
        self._shown: _Bar | _Lines = _Bar(out) if out.is_interactive else _Lines(interval)

    def __enter__(self) -> Self:
        self._shown.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shown.stop(finished=error is None)

    def show(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of `stage`; may be called thousands of times a second."""
        self._shown.show(stage, done, total)

    def say(self, message: str) -> None:
        """A line that stays."""
        self._shown.say(message)


class _Bar:
    """rich's bar, drawn at most every `_FRAME` seconds; without the bar itself where it would crowd out the figures."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._bar = Progress(*_columns(out), console=out, transient=True)
        self._stage: str | None = None
        self._task = TaskID(0)
        self._drawn = 0.0

    def start(self) -> None:
        self._bar.start()

    def stop(self, *, finished: bool) -> None:
        self._bar.stop()

    def show(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if stage != self._stage:
            if self._stage is not None:
                self._bar.remove_task(self._task)
            self._stage = stage
            self._task = self._bar.add_task(encodable(stage, self._out.encoding), total=total)
        elif now - self._drawn < _FRAME and done < total:
            return
        self._drawn = now
        self._bar.update(self._task, completed=done, total=total)

    def say(self, message: str) -> None:
        print_lines(self._out, message)


class _Lines:
    """Lines, also while nothing is heard of a stage: a thread looks whether one is due."""

    def __init__(self, interval: float) -> None:
        self._lines = StageLines(lambda line: echo(line, stderr=True), interval=interval)
        self._look = interval / 5
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._watch.start()

    def stop(self, *, finished: bool) -> None:
        self._over.set()
        self._watch.join()
        self._lines.close(finished=finished)

    def show(self, stage: str, done: int, total: int) -> None:
        self._lines.show(stage, done, total)

    def say(self, message: str) -> None:
        echo(message, stderr=True)

    def _run(self) -> None:
        while not self._over.wait(self._look):
            self._lines.tick()


def _columns(out: Console) -> list[ProgressColumn]:
    bar = [BarColumn()] if out.width >= _WIDE else []
    elapsed = [TimeElapsedColumn()] if out.width >= _MIDDLING else []
    room = max(out.width - _FIGURES - 8 * len(elapsed) - 41 * len(bar), 8)
    # the name of a stage gives way to the figures
    short = Column(no_wrap=True, max_width=room, overflow="crop" if out.options.ascii_only else "ellipsis")
    stage = TextColumn("{task.description}", markup=False, table_column=short)
    spinner = SpinnerColumn("line" if out.options.ascii_only else "dots")
    return [spinner, stage, *bar, MofNCompleteColumn(), *elapsed, TextColumn("left"), TimeRemainingColumn()]
