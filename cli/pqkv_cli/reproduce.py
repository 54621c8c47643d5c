"""`pqkv reproduce`: run an experiment of this repository again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pqkv_cli.options import Force
from pqkv_cli.output import console, echo
from pqkv_cli.records import gather, raise_if_failed
from pqkv_cli.table import print_pairs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pqkv.record import Record, RecordStore
    from pqkv.reproduce.catalog import Experiment
    from pqkv_cli.progress import ProgressBar

QUICK_FOLDER = Path("build/quick")


def reproduce(
    name: Annotated[str | None, typer.Argument(help="The experiment; see --list.", show_default=False)] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Run every experiment.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A small version, under three minutes on two cores.")] = False,
    parts: Annotated[
        str | None,
        typer.Option(
            help="Only these parts of an experiment that has some, by letter: a,d (see its README). [default: all]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Ask this model (as --model of pqkv eval) what the experiment asks the bundled one; its claims stand "
            "beside those of the others. Parts that ask no model do not run.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Records go to OUTPUT/NAME. [default: results; with --quick build/quick]",
            show_default=False,
        ),
    ] = None,
    experiments: Annotated[Path, typer.Option(help="Folder of the experiments' settings and questions.")] = Path(
        "experiments"
    ),
    force: Force = False,
) -> None:
    """Run an experiment on this machine: its cells, then its tables and plots.

    Cells that have a record are not run again, so an interrupted run goes on where it stopped.
    """
    from pqkv.errors import ConfigError
    from pqkv.reproduce import EXPERIMENTS, experiment
    from pqkv.reproduce.run import asks_a_model

    if list_:
        print_pairs(console(), [(found.name, found.title) for found in EXPERIMENTS.values()])
        return
    if everything == (name is not None):
        raise ConfigError("name one experiment, or give --all or --list")
    chosen = list(EXPERIMENTS.values()) if name is None else [experiment(name)]
    if name is None and model is not None:
        chosen = [found for found in chosen if asks_a_model(found)]
    letters = () if parts is None else tuple(part.strip() for part in parts.split(","))
    root = output or (QUICK_FOLDER if quick else Path("results"))
    failed: list[Record] = []
    for found in chosen:
        failed += _run(found, root / found.name, experiments, letters, model, quick=quick, force=force)
    raise_if_failed(failed)


def _run(
    found: Experiment,
    folder: Path,
    experiments: Path,
    parts: tuple[str, ...],
    model: str | None,
    *,
    quick: bool,
    force: bool,
) -> list[Record]:
    """Run one experiment; returns the records of this run."""
    from pqkv.reproduce import Request
    from pqkv.reproduce import reproduce as run
    from pqkv.reproduce.run import derive
    from pqkv_cli.progress import ProgressBar

    def cells(store: RecordStore | None, bar: ProgressBar) -> Iterator[Record]:
        assert store is not None
        return run(found, experiments, Request(store, quick, force, bar.show, parts, model))

    records = gather(cells, folder)
    with ProgressBar() as bar:
        bar.show(f"tables and plots of {found.name}", 0, 1)
        outcome = derive(found, folder)
    for path in outcome.files:
        echo(path)
    return records
