"""A sweep under way, on stderr: a live table, or the lines that other commands have."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich import box
from rich.live import Live
from rich.table import Table as RichTable

from pqkv.amounts import bytes_text, seconds_text
from pqkv_cli.output import console, echo, encodable
from pqkv_cli.progress import ProgressBar

if TYPE_CHECKING:
    from pqkv.sweep.ledger import State


class Lines:
    """The bar, or lines, of every command."""

    def __init__(self) -> None:
        self._bar = ProgressBar()

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """A line that stays."""
        self._bar.say(line)

    def show(self, state: State) -> None:
        """How many cells are over."""
        self._bar.show("cells", state.over, state.total)


class Table:
    """One row a cell under way, counts above; where there is no terminal, the lines."""

    def __init__(self) -> None:
        out = console(stderr=True)
        self._lines = None if out.is_interactive else Lines()
        self._out, self._started, self._first = out, time.monotonic(), -1
        self._live = Live(console=out, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        (self._lines or self._live).__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._lines or self._live).__exit__(kind, error, trace)

    def say(self, line: str) -> None:
        """A line that stays, above the table."""
        if self._lines is not None:
            self._lines.say(line)
        elif self._live.is_started:
            self._live.console.print(encodable(line, self._out.encoding))
        else:
            echo(line, stderr=True)

    def show(self, state: State) -> None:
        """Draw the table, twice a second at most."""
        if self._lines is not None:
            self._lines.show(state)
            return
        now = time.monotonic()
        if now - self._drawn >= 0.5:
            self._drawn = now
            self._live.update(table_of(state, now - self._started, self._out.encoding), refresh=True)


def table_of(state: State, elapsed: float, encoding: str) -> RichTable:
    """The table at one moment, `elapsed` seconds after the sweep began."""
    counts = [f"{state.over} of {state.total} cells over", f"{state.measured} run now", f"{state.found} there before"]
    counts += [f"{state.failed} failed"] if state.failed else []
    counts += [f"{state.elsewhere} in another sweep"] if state.elsewhere else []
    if state.measured:
        left = (state.total - state.over) * elapsed / state.measured
        counts.append(f"about {seconds_text(left)} left")
    table = RichTable(box=box.SIMPLE, title=", ".join(counts), title_justify="left")
    table.add_column("cell", overflow="fold")
    table.add_column("where it is", overflow="fold")
    for name in ("for", "resident"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in state.running:
        words = (encodable(one.label, encoding), encodable(one.stage, encoding))
        table.add_row(*words, seconds_text(one.seconds), bytes_text(one.resident))
    return table
