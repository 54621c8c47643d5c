"""Tables in which no figure is ever cut: narrower by steps, and at last one record below the other."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pqkv_cli.output import encodable

_MEASURE = 100_000  # wider than any table
_NARROWEST = 20  # columns, whatever a terminal says of itself
# where "1.0018 [1.0001, 1.0035]" and "exact-schedule" may be broken: between figures or words, never inside one
_BEFORE_BRACKETS = re.compile(r" (?=[\[(])")
_BETWEEN_PARTS = re.compile(r"(?<=,) | (?=[\[(])|(?<=[a-z]-)(?=[a-z])")


def print_table(
    out: Console,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str,
    caption: str | None = None,
    words: Iterable[str] = (),
) -> None:
    """Print `rows` under `columns`; those named in `words` stand left, figures right.

    A column in which no row has anything is left out. What does not fit the console's width gets its headers, then its
    intervals on lines of their own; where that is still too wide, each row becomes a list of names and values.
    """
    every = [[encodable(cell, out.encoding) for cell in row] for row in rows]
    title, caption = encodable(title, out.encoding), encodable(caption or "", out.encoding)
    kept = [i for i in range(len(columns)) if any(row[i] for row in every)]
    names, cells = [columns[i] for i in kept], [[row[i] for i in kept] for row in every]
    for table in _narrower_and_narrower(names, cells, set(words)):
        if table.__rich_measure__(out, out.options.update(width=_MEASURE)).maximum <= out.width:
            table.title, table.caption = title, caption or None
            out.print(table)
            return
    print_lines(out, title, style="table.title")
    for row in cells:
        out.print()
        print_pairs(out, zip(names, (cell.replace("\n", " ") for cell in row), strict=True))
    out.print()
    if caption:
        print_lines(out, caption, style="table.caption")


def print_pairs(out: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """A list of names and values, long values over several lines; those without a value are left out."""
    found = [(name, encodable(value, out.encoding)) for name, value in pairs if value]
    start = max((len(name) for name, _ in found), default=0) + 2
    for name, value in found:
        print_lines(out, value, first=name.ljust(start), later=" " * start)


def print_lines(out: Console, text: str, *, style: str = "", first: str = "", later: str = "") -> None:
    """`text` over as many lines as it takes, broken between words only: a word too long for a line is never cut."""
    lines = textwrap.wrap(
        encodable(text, out.encoding), max(out.width, _NARROWEST), initial_indent=first, subsequent_indent=later,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    for line in lines:
        out.print(Text(line, style=style), soft_wrap=True)


def _narrower_and_narrower(names: list[str], cells: list[list[str]], left: set[str]) -> Iterator[Table]:
    yield _build(names, cells, left, tight=False)
    names, left = [name.replace(" ", "\n") for name in names], {name.replace(" ", "\n") for name in left}
    yield _build(names, cells, left, tight=False)
    for breaks in (_BEFORE_BRACKETS, _BETWEEN_PARTS):
        yield _build(names, [[breaks.sub("\n", cell) for cell in row] for row in cells], left, tight=True)


def _build(names: list[str], cells: list[list[str]], left: set[str], *, tight: bool) -> Table:
    table = Table(box=box.SIMPLE, padding=0 if tight else (0, 1), show_edge=not tight)
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table
