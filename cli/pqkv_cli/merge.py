"""`pqkv merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqkv_cli.output import console, echo

if TYPE_CHECKING:
    from pqkv.sweep.merge import Conflict

_SHOWN = 6  # metrics of a conflict


def merge(
    folders: Annotated[list[Path], typer.Argument(help="Folders of records.", show_default=False)],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for all of them; what it holds stays.", show_default=False)
    ],
) -> None:
    """Join folders of records, such as those of a sweep's shards.

    A configuration with other figures in other folders is shown and left out: nothing chooses between them.
    """
    from pqkv.errors import PqkvError
    from pqkv.sweep.merge import merge as join

    done = join(folders, output)
    for folder in done.empty:
        echo(f"no records in {folder}: a shard without cells, or another folder was meant", stderr=True)
    if done.conflicts:
        _print_conflicts(done.conflicts)
    echo(
        f"{output}: {done.written} records written, {done.there} there before; {done.twice} measured twice with the "
        f"same figures, of which the first stays; {done.outdone} failures outdone; {done.outcomes} outcomes of cells"
    )
    if done.conflicts:
        count = len(done.conflicts)
        raise PqkvError(
            f"{count} configuration{'' if count == 1 else 's'} with other figures in other folders left out; delete "
            "the records that are wrong, or measure both as runs (--runs) of one sweep"
        )


def _print_conflicts(conflicts: list[Conflict]) -> None:
    from pqkv.report.series import mode_name, shape_name
    from pqkv_cli.table import print_table

    rows = []
    for conflict in conflicts:
        c = next(iter(conflict.records.values())).config
        what = ", ".join(part for part in (shape_name(c), mode_name(c), str(c.get("context", ""))) if part)
        names = conflict.different() or ["samples"]
        for folder, record in conflict.records.items():
            figures = [f"{name} {_figure(record.metrics.get(name))}" for name in names[:_SHOWN] if name != "samples"]
            said = "; ".join(figures) or "the same figures of other windows"
            rows.append([conflict.name, what, str(folder), record.started_at, said])
    columns = ("record", "cell", "folder", "measured", "what differs")
    print_table(console(), columns, rows, title="records of one configuration with other figures", words=columns)


def _figure(metric: object) -> str:
    value = getattr(metric, "value", None)
    return "-" if value is None else f"{value:.6g}"
