"""Which experiments a folder of results holds: their records, what their README says, and the files they wrote."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pqkv.errors import RecordError
from pqkv.record import Record, RecordStore, load_records, read_record
from pqkv.report.plots import PLOT_NAMES

# What the report itself writes beside records: derived again here, so not an experiment's own.
_DERIVED = {"summary.csv", "summary.md", "report.html", *(f"{name}.png" for name in PLOT_NAMES)}
_FIGURES = (".svg", ".png")


@dataclass(frozen=True, slots=True)
class Experiment:
    """Records under the name of their folder. `readme` is empty where nobody wrote one."""

    name: str
    records: tuple[Record, ...]
    readme: str = ""
    tables: tuple[Path, ...] = ()
    figures: tuple[Path, ...] = ()


def find_experiments(results: Iterable[Path], descriptions: Path | None = None) -> list[Experiment]:
    """The experiments in `results`: a folder that holds records is one, and so is each sub-folder that holds some
    anywhere below it; a record file belongs to one named after its folder.

    `descriptions` has a folder per experiment with its README. Raises `RecordError` when it is named and missing.
    """
    if descriptions is not None and not descriptions.is_dir():
        raise RecordError(f"no folder of experiments at {descriptions}")
    found: list[Experiment] = []
    seen: set[Path] = set()
    single: dict[Path, list[Path]] = {}
    for start in results:
        if not start.is_dir():
            single.setdefault(start.resolve().parent, []).append(start)
            continue
        for folder in (start, *sorted(path for path in start.iterdir() if path.is_dir())):
            where, deep = folder.resolve(), folder != start
            if where in seen:
                continue
            records = load_records(folder) if deep else RecordStore(folder).load_all()
            if records:
                seen.add(where)
                found.append(_experiment(where.name, records, descriptions, _files(folder, deep=deep)))
    for where, files in single.items():
        if where not in seen:
            records = [read_record(path) for path in dict.fromkeys(files)]
            found.append(_experiment(where.name, records, descriptions, []))
    return found


def _experiment(name: str, records: list[Record], descriptions: Path | None, files: list[Path]) -> Experiment:
    figures = [path for path in files if path.suffix.lower() in _FIGURES]
    drawn = {path.with_suffix("") for path in figures if path.suffix.lower() == ".svg"}
    return Experiment(
        name=name,
        records=tuple(records),
        readme=_readme(descriptions / name / "README.md") if descriptions is not None else "",
        tables=tuple(path for path in files if path.suffix.lower() == ".csv"),
        # of a figure kept both ways, the one that stays sharp
        figures=tuple(path for path in figures if path.suffix.lower() == ".svg" or path.with_suffix("") not in drawn),
    )


def _files(folder: Path, *, deep: bool) -> list[Path]:
    paths = folder.rglob("*") if deep else folder.glob("*")
    kinds = (".csv", *_FIGURES)
    return sorted(
        path for path in paths if path.suffix.lower() in kinds and path.name not in _DERIVED and path.is_file()
    )


def _readme(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
