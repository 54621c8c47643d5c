"""`report.html`: every experiment on one page that needs nothing but itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqkv.errors import RecordError
from pqkv.metrics import metric_info, metric_order
from pqkv.record import Record, atomic_write
from pqkv.report.experiments import Experiment
from pqkv.report.grid import Grid, grid_of_cells, grid_of_tables, read_csv_grid
from pqkv.report.looks import LegendGroup, legend
from pqkv.report.panels import HEIGHT, WIDTH, Panel, colour_rules, colour_variable, panels
from pqkv.report.picture import Picture, read_picture
from pqkv.report.plot import Plot, visible_lines
from pqkv.report.plots import plots_of
from pqkv.report.readme import section, to_html
from pqkv.report.series import Cell, as_text, cells
from pqkv.report.tables import (
    HEADLINES,
    Origin,
    cell_columns,
    further_formats,
    groups,
    metric_columns,
    origins,
)

LONG = 16  # rows from which on a table is folded
_NO_QUESTION = "No README states this experiment's question."
_NO_FINDING = "No README states a finding; the figures and tables below are what was measured."


@dataclass(frozen=True, slots=True)
class _Figure:
    title: str
    note: str
    legend: tuple[LegendGroup, ...]
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """The tables of cells that belong side by side; `details` hold what stands behind the headline."""

    name: str
    grids: tuple[Grid, ...]
    details: tuple[Grid, ...]


@dataclass(frozen=True, slots=True)
class _View:
    """An experiment as the template shows it."""

    name: str
    anchor: str
    ran: int
    kinds: str
    days: str
    effort: str
    question: str
    finding: str
    pictures: tuple[Picture, ...]
    figures: tuple[_Figure, ...]
    own_tables: tuple[Grid, ...]
    groups: tuple[_Group, ...]
    failed: tuple[Cell, ...]
    notes: tuple[tuple[str, int], ...]
    origins: dict[Origin, int]
    fixed: tuple[tuple[str, str], ...]


def write_page(experiments: Sequence[Experiment], folder: Path) -> Path:
    """Write `report.html` into `folder` and return its path; the same experiments give the same bytes.

    Raises `RecordError` when there are no records, or a file of an experiment cannot be read.
    """
    path = Path(folder) / "report.html"
    atomic_write(path, page(experiments).encode("utf-8", "backslashreplace"))
    return path


def page(experiments: Sequence[Experiment]) -> str:
    """The text that `write_page` writes."""
    if not any(experiment.records for experiment in experiments):
        raise RecordError("there are no records to report; run `pqkv eval` first")
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pqkv.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["dashes"] = _dash_array
    environment.filters["variable"] = colour_variable
    anchors = _anchors([experiment.name for experiment in experiments])
    views = [_view(experiment, anchor) for experiment, anchor in zip(experiments, anchors, strict=True)]
    return environment.get_template("report.html").render(
        views=views,
        measures=_measures(record for experiment in experiments for record in experiment.records),
        light=colour_rules("light"),
        dark=colour_rules("dark"),
        panel_width=WIDTH,
        panel_height=HEIGHT,
        long=LONG,
    )


def _view(experiment: Experiment, anchor: str) -> _View:
    everything = cells(experiment.records)
    ran = [cell for cell in everything if cell.record.status == "ok"]
    question = section(experiment.readme, "Question")
    finding = section(experiment.readme, "Finding", "Result", "Findings", "Results")
    records = [cell.record for cell in everything]
    notes = sorted(note for record in records for note in record.notes)
    days = sorted({record.started_at[:10] for record in records})
    return _View(
        name=experiment.name,
        anchor=anchor,
        ran=len(ran),
        kinds=", ".join(sorted({record.kind for record in records})),
        days=days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}",
        effort=_duration(sum(record.seconds for record in records)),
        question=to_html(question or _NO_QUESTION),
        finding=to_html(finding or _NO_FINDING),
        pictures=tuple(read_picture(path, experiment.name) for path in experiment.figures),
        figures=tuple(_figure(plot) for plot in plots_of(records) if visible_lines(plot)),
        own_tables=tuple(read_csv_grid(path, _title(path)) for path in experiment.tables),
        groups=tuple(_group(name, members) for name, members in groups(ran)),
        failed=tuple(cell for cell in everything if cell.record.status == "failed"),
        notes=tuple((note, notes.count(note)) for note in dict.fromkeys(notes)),
        origins=origins(everything),
        fixed=_fixed(records),
    )


def _figure(plot: Plot) -> _Figure:
    visible = visible_lines(plot)
    sentences = [f"{_capital(plot.y_label)}."]
    if any(point.low is not None for line in visible for point in line.points):
        sentences.append("Bars are 95% intervals.")
    if plot.name.endswith("_by_code_bits"):
        sentences.append("Of the contexts, the shortest and the longest.")
    return _Figure(plot.title, " ".join(sentences), tuple(legend(plot, visible)), tuple(panels(plot)))


def _group(name: str, members: list[Cell]) -> _Group:
    who = cell_columns(members)
    headline = [column for formats in HEADLINES for column in metric_columns(formats, members)]
    note = "An arrow says which way is better." + (" Brackets hold 95% intervals." if _has_intervals(members) else "")
    grids = (grid_of_cells("Headline measures", [*who, *headline], members, note),)
    details = []
    if further := metric_columns(further_formats(members), members):
        details.append(grid_of_cells("Further measures", [*who, *further], members, note))
    names = sorted({table for cell in members for table in cell.record.tables})
    details += [grid for table in names if (grid := grid_of_tables(table, members)).rows]
    return _Group(name, grids, tuple(details))


def _has_intervals(members: Sequence[Cell]) -> bool:
    return any(metric.low is not None for cell in members for metric in cell.record.metrics.values())


def _measures(records: Iterable[Record]) -> list[dict[str, Any]]:
    names = sorted({name for record in records for name in record.metrics}, key=metric_order)
    return [{"name": name, "info": metric_info(name)} for name in names]


def _fixed(records: Sequence[Record]) -> tuple[tuple[str, str], ...]:
    """The keys that every cell was configured with alike."""
    first, *others = [record.config for record in records]
    shared = [key for key in first if all(key in other and other[key] == first[key] for other in others)]
    return tuple((key, as_text(first[key])) for key in sorted(shared))


def _anchors(names: Sequence[str]) -> list[str]:
    """An anchor for each name: its letters and digits, and a number where two would be the same."""
    taken: list[str] = []
    for name in names:
        base = "x-" + (re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") or "experiment")
        anchor, number = base, 2
        while anchor in taken:
            anchor, number = f"{base}-{number}", number + 1
        taken.append(anchor)
    return taken


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _dash_array(dash: Any) -> str:  # noqa: ANN401 - one of matplotlib's ways to say it
    """A matplotlib dash in SVG's words."""
    named = {"-": "", "--": "6 3", ":": "2 3", "-.": "7 3 2 3"}
    return named[dash] if isinstance(dash, str) else " ".join(str(2 * length) for length in dash[1])


def _title(path: Path) -> str:
    return _capital(re.sub("[-_]+", " ", path.stem))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
