"""Run an experiment: its settings, its cells into its folder of records, then tables and plots from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqkv.config import read_config_file
from pqkv.errors import ConfigError, RecordError
from pqkv.record import Record, RecordStore
from pqkv.reproduce.catalog import Experiment

SETTINGS_FILE = "experiment.toml"
Report = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Request:
    """How an experiment is to run: `quick` is its small version (under three minutes on two cores), `force` runs cells
    that have a record again, `report(stage, done, total)` is told of progress, `parts` are the letters of the parts to
    run (empty: all), `model` is the one to ask instead of the experiment's own (then all parts are those that ask one).
    """

    store: RecordStore
    quick: bool = False
    force: bool = False
    report: Report = lambda stage, done, total: None
    parts: tuple[str, ...] = ()
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left: its records and the files derived from them."""

    records: list[Record]
    files: list[Path]


def reproduce(found: Experiment, experiments: Path, request: Request) -> Iterator[Record]:
    """Run the cells of an experiment, yielding each record; `derive` its tables and plots afterwards.

    Raises `ConfigError` for a part that it does not have, and for one that asks no model where a model is named.
    """
    module = found.load()
    known = getattr(module, "LETTERS", "")
    if unknown := [part for part in request.parts if part not in tuple(known)]:
        has = f"known: {', '.join(known)}" if known else "it has none"
        raise ConfigError(f"{found.name} has no part '{unknown[0]}'; {has}")
    asking = getattr(module, "MODEL_LETTERS", known)
    if request.model is not None and not asks_a_model(found):
        raise ConfigError(f"{found.name} asks no model: leave --model out")
    if request.model is not None and (fixed := [part for part in request.parts if part not in tuple(asking)]):
        raise ConfigError(
            f"part {fixed[0]} of {found.name} takes no --model; with one, name parts of {', '.join(asking)}, or none"
        )
    settings = settings_of(found, experiments, quick=request.quick, model=request.model)
    request.store.check_writable()
    yield from module.cells(settings, request)


def asks_a_model(found: Experiment) -> bool:
    """Whether any part of an experiment is about a model, so that it can be put to another."""
    return bool(getattr(found.load(), "MODEL_LETTERS", True))


def derive(found: Experiment, folder: Path) -> Outcome:
    """Tables and plots of all records in `folder`, which they are written to. Raises `RecordError` for an empty one."""
    records = RecordStore(folder).load_all()
    if not records:
        raise RecordError(f"there are no records of '{found.name}' in {folder}; run pqkv reproduce {found.name}")
    return Outcome(records, found.load().derive(records, folder))


def settings_of(found: Experiment, experiments: Path, *, quick: bool, model: str | None = None) -> Any:  # noqa: ANN401 - the experiment's own type
    """What experiments/<name>/experiment.toml holds. Over its keys go those of its table `quick` if `quick`; with a
    `model` that model, and what its own table `models.<model>` (which may have a table `quick` too) sizes for it.

    Raises `ConfigError` where the file is not there, not TOML, or holds what the experiment does not know.
    """
    path = Path(experiments) / found.name / SETTINGS_FILE
    if not path.is_file():
        raise ConfigError(
            f"there is no {path}: run in a checkout of pqkv, or name its folder of experiments with --experiments"
        )
    values = read_config_file(path)
    small = _table(values, "quick", path)
    models = _table(values, "models", path)
    source = str(path)
    if model is None:
        values |= small if quick else {}
    else:
        own = _table(models, model, path, "models.")
        own_small = _table(own, "quick", path, f"models.{model}.")
        values |= own | (small | own_small if quick else {}) | {"model": model}
        source += f", for the model {model}"
    return found.load().Settings.parse(values, source=source)


def _table(values: dict[str, Any], name: str, path: Path, place: str = "") -> dict[str, Any]:
    """Take the table `name` out of `values`, an empty one where there is none."""
    table = values.pop(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: {place}{name}: must be a table of settings")
    return dict(table)
