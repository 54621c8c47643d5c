"""Rows of results, and what they become: CSV files and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pqkv.record import Record, atomic_write
from pqkv.report.drawing import Line, Plot, Point, draw

Row = dict[str, Any]
# model: whose figures these are, where they are a model's; gpu: what was measured on one
CLAIM_COLUMNS = ("part", "model", "claim", "theirs", "ours", "gpu", "holds")
_QUOTED = ("part", "claim", "theirs", "ours", "holds")
WORDS = {True: "yes", False: "no", None: "not known"}
NOT_HERE = "not measurable here"  # as what is claimed of a GPU, on a processor
NO_CLAIM = "nothing claimed"  # a figure beside what a report leaves unsaid


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """The records of cells of `kind` that ran, oldest first."""
    return sorted((r for r in records if r.kind == kind and r.status == "ok"), key=lambda r: (r.started_at, r.digest))


def newest(rows: Iterable[Row], *keys: str, most: str | None = None) -> list[Row]:
    """The last of the rows that agree in `keys`: a folder may hold runs with an older model or other codebooks. One
    with less of `most` (its windows, say) never takes the place of one with more: a quick run into the same folder.
    """
    found: dict[Hashable, Row] = {}
    for row in rows:
        key = tuple(row[name] for name in keys)
        if key not in found or most is None or row[most] >= found[key][most]:
            found[key] = row
    return sorted(found.values(), key=lambda row: [_order(row[key]) for key in keys])


def table_rows(records: Iterable[Record], kind: str, table: str) -> Iterator[Row]:
    """Rows of a table of all records of a kind, each with the record's configuration before it."""
    for record in of_kind(records, kind):
        for row in record.tables.get(table, []):
            yield {**record.config, **row}


def write_rows(rows: Sequence[Row], path: Path, columns: Sequence[str] | None = None) -> Path:
    """Write rows as CSV, every digit; columns in the order in which rows first name them."""
    names = list(columns or dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n", restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows({key: _word(value) for key, value in row.items()} for row in rows)
    atomic_write(path, text.getvalue().encode())
    return path


def write_claims(claims: Sequence[Row], folder: Path) -> list[Path]:
    """`claims.csv`, and `claims.md`: the same rows as a table, for texts to quote."""
    head = [f"| {' | '.join(_QUOTED)} |", "|---" * len(_QUOTED) + "|"]
    rows = [f"| {' | '.join(str(row[name]) for name in _QUOTED)} |" for row in claims]
    atomic_write(folder / "claims.md", ("\n".join([*head, *rows]) + "\n").encode())
    return [write_rows(claims, folder / "claims.csv", CLAIM_COLUMNS), folder / "claims.md"]


def write_plot(plot: Plot, folder: Path) -> list[Path]:
    """The picture of a plot that has data."""
    image = draw(plot)
    if image is None:
        return []
    path = folder / f"{plot.name}.png"
    atomic_write(path, image)
    return [path]


def lines(rows: Iterable[Row], panel: Callable[[Row], str], hue: str, x: str, y: str) -> tuple[Line, ...]:
    """Points of rows joined to lines; `y_low` and `y_high` are the interval where a row has them."""
    points: dict[tuple[str, str], list[Point]] = {}
    for row in rows:
        point = Point(float(row[x]), float(row[y]), row.get(f"{y}_low"), row.get(f"{y}_high"))
        points.setdefault((panel(row), str(row[hue])), []).append(point)
    return tuple(
        Line(panel_name, name, "", "", tuple(sorted(found, key=lambda point: point.x)))
        for (panel_name, name), found in points.items()
    )


def plot(
    name: str,
    title: str,
    labels: tuple[str, str],
    drawn: tuple[Line, ...],
    hue_title: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    baseline: float | None = None,
) -> Plot:
    """A plot with ticks where its points are; `labels` are those of the axes."""
    return Plot(
        name=name,
        title=title,
        x_label=labels[0],
        y_label=labels[1],
        lines=drawn,
        hue_title=hue_title,
        hues=tuple(dict.fromkeys(line.hue for line in drawn)),
        log_x=log_x,
        log_y=log_y,
        x_ticks=tuple(sorted({point.x for line in drawn for point in line.points})),
        baseline=baseline,
    )


def held(*, inside: bool, outside: bool) -> bool | None:
    """Whether a claim holds: yes where the whole interval satisfies it, no where none of it does, else unknown. Without
    an interval both are False.
    """
    return True if inside else False if outside else None


def claim(text: str, theirs: str, ours: str, holds: bool | str | None, model: str | None = None) -> Row:
    """One line of claims.csv, less its part. `holds` is a verdict, `NOT_HERE` or `NO_CLAIM`; where it is not known,
    `ours` says why.
    """
    word = holds if isinstance(holds, str) else WORDS[holds]
    return {"model": model, "claim": text, "theirs": theirs, "ours": ours, "holds": word}


def _word(value: Any) -> Any:  # noqa: ANN401 - a cell of a table
    return WORDS[value] if isinstance(value, bool) else "" if value is None else value


def _order(value: Any) -> tuple[int, float, str]:  # noqa: ANN401 - a cell of a table
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
