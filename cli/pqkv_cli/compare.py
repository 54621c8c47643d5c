"""`pqkv compare`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqkv_cli.flags import split_list
from pqkv_cli.output import console, echo
from pqkv_cli.records import RecordFormat

if TYPE_CHECKING:
    from pqkv.sweep.change import Change
    from pqkv.sweep.compare import Comparison, Pair

_HOW = {
    "windows": "pairs of windows",
    "runs": "runs",
    "intervals": "the figures' own intervals",
    "none": "no interval",
}


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of records: before.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Folder of records: after.", show_default=False)],
    metrics: Annotated[
        str | None, typer.Option("--metrics", help="By commas.", show_default="headline measures of quality and speed")
    ] = None,
    ignore: Annotated[
        str | None, typer.Option("--ignore", help="Settings that tell no cells apart, by commas.", show_default=False)
    ] = None,
    fail_above: Annotated[
        str | None,
        typer.Option(
            "--fail-above",
            help="Exit with 1 where a figure is worse by more than this with its whole interval, as 1%, or a cell of "
            "before is not in after.",
            show_default=False,
        ),
    ] = None,
    format: Annotated[RecordFormat, typer.Option("--format", help="What to print.")] = RecordFormat.table,
) -> None:
    """Set two folders of records side by side, cell by cell: two commits, two machines, two recipes.

    Changes are relative; intervals hold for all of them together at 95%, over pairs of windows where both have them.
    """
    from pqkv.amounts import share_of
    from pqkv.sweep.compare import COMPARED
    from pqkv.sweep.compare import compare as set_beside

    limit = None if fail_above is None else share_of(fail_above, "--fail-above")
    found = set_beside(
        first, second, metrics=split_list(metrics, str, "--metrics") or COMPARED,
        ignore=split_list(ignore, str, "--ignore") or (),
    )  # fmt: skip
    if format is RecordFormat.table:
        _print(found, first, second)
    else:
        _print_rows(found, format)
    if limit is None:
        return
    if found.only_first:
        echo(
            f"{len(found.only_first)} cells of {first} are not in {second}: {'; '.join(found.only_first[:3])}",
            stderr=True,
        )
    if untold := found.untold(limit):
        echo(_untold(untold, limit), stderr=True)
    if worse := found.worse(limit):
        pair, one = max(worse, key=lambda item: item[1].least_worse or 0.0)
        echo(
            f"{len(worse)} figures are worse by more than {limit:.2%}; the most: {one.metric} of {pair.label} by "
            f"{one.value:+.2%}",
            stderr=True,
        )
    if worse or found.only_first:
        raise typer.Exit(1)


def _untold(figures: list[tuple[Pair, Change]], limit: float) -> str:
    """What nothing tells, in a line that says how it could be told."""
    pair, one = max(figures, key=lambda item: item[1].most_worse or 0.0)
    said = f"{len(figures)} figures may be worse by more than {limit:.2%} or not; the least certain: {one.metric} of "
    said += f"{pair.label}, {_interval(one)}"
    windows = one.windows_for(limit) if limit > 0 else None
    return said if windows is None else f"{said} of {one.count} windows; some {windows:,} would tell {limit:.2%} from 0"


def _print(found: Comparison, first: Path, second: Path) -> None:
    from pqkv_cli.table import print_lines, print_table

    out = console()
    changes = [(pair, one) for pair in found.pairs for one in pair.changes]
    for key, (one, other) in found.settings.items():
        print_lines(out, f"{key}: {one or 'not set'} in {first}, {other or 'not set'} in {second}")
    print_table(
        out,
        ("cell", "figure", "before", "after", "change", "told", "interval over"),
        [
            [pair.label, one.metric, f"{one.first:.5g}", f"{one.second:.5g}", _interval(one), _told(one), _HOW[one.how]]
            for pair, one in changes
        ],
        title=f"{second} against {first}: {len(found.pairs)} cells in both",
        caption=f"relative change; intervals hold at 95% for all {len(changes)} together",
        words=("cell", "figure", "told", "interval over"),
    )
    for folder, labels in ((first, found.only_first), (second, found.only_second)):
        if labels:
            more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
            print_lines(out, f"only in {folder}: {len(labels)} cells: {'; '.join(labels[:3])}{more}")


def _interval(one: Change) -> str:
    inside = "" if one.low is None or one.high is None else f" [{one.low:+.2%}, {one.high:+.2%}]"
    return f"{one.value:+.2%}{inside}"


def _told(one: Change) -> str:
    if not one.told:
        return ""
    return "worse" if (one.least_worse or 0.0) > 0 else "better"


def _print_rows(found: Comparison, format: RecordFormat) -> None:
    rows = [
        {"cell": pair.label, "first": pair.first[0].digest, "second": pair.second[0].digest, **asdict(one)}
        for pair in found.pairs
        for one in pair.changes
    ]
    if format is RecordFormat.json:
        echo(json.dumps(rows, indent=1))
        return
    import pandas

    echo(pandas.DataFrame(rows).to_csv(index=False), end="")
