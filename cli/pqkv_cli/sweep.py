"""`pqkv sweep`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pqkv_cli.flags import option
from pqkv_cli.options import OUTPUT
from pqkv_cli.output import echo

if TYPE_CHECKING:
    from pqkv.sweep.config import SweepConfig
    from pqkv.sweep.shard import Shard

_RUN, _WHICH = "How cells are run", "Which cells"


def _file() -> object:
    import typer

    return typer.Argument(help="TOML: command, fixed, product, zip, seed, limits; see --example.", show_default=False)


def sweep(
    file: Annotated[Path | None, _file()] = None,
    output: Annotated[
        Path | None,
        option(
            "Folder for records and outcomes; cells that are over are not run again.", OUTPUT, False, "-o", "--output"
        ),
    ] = None,
    plan: Annotated[
        bool, option("List the cells and what they are expected to take; run nothing.", OUTPUT, False, "--plan")
    ] = False,
    past: Annotated[
        list[Path] | None, option("Folders of records that estimates go by, beside that of -o.", OUTPUT, False)
    ] = None,
    watch: Annotated[bool, option("A live table of the cells under way.", OUTPUT, False, "--watch")] = False,
    example: Annotated[str | None, option("Print an example: length, recipe or bench.", OUTPUT, False)] = None,
    jobs: Annotated[int, option("Processes at once.", _RUN, "1", "-j", "--jobs")] = 1,
    runs: Annotated[int, option("Times that each cell is run.", _RUN, "1")] = 1,
    ray: Annotated[
        str | None, option("On a Ray cluster: local starts one, auto finds one, or its address.", _RUN, False)
    ] = None,
    retry_failed: Annotated[bool, option("Run cells again that failed.", _RUN, False, "--retry-failed")] = False,
    shard: Annotated[
        str | None, option("Of the cells every nth from the ith on, as 2/8.", _WHICH, "as SLURM says, or all")
    ] = None,
) -> None:
    """Run a command's grid cell by cell, in processes that are watched, and go on wherever it was stopped.

    Several sweeps may share a folder: each cell has a lock, and what a killed one left is taken over.
    """  # fmt: skip
    from pqkv.errors import ConfigError
    from pqkv.sweep.config import SweepConfig

    if example is not None:
        from pqkv.sweep.examples import example as text_of

        echo(text_of(example), end="")
        return
    if file is None:
        raise ConfigError("name a file; pqkv sweep --example length prints one")
    if jobs < 1 or runs < 1:
        raise ConfigError("--jobs and --runs count from 1")
    config, ours = SweepConfig.read(file), _shard(shard)
    if plan:
        from pqkv_cli.sweep_plan import print_plan

        print_plan(config, ours, output, past or [], jobs=jobs, runs=runs)
        return
    if output is None:
        raise ConfigError("a sweep keeps what it finds: name a folder with -o, or list the cells with --plan")
    _run(config, ours, output, jobs=jobs, runs=runs, retry_failed=retry_failed, watch=watch, ray=ray)


def _shard(text: str | None) -> Shard:
    import os

    from pqkv.sweep.shard import Shard

    found = Shard.parse(text) if text is not None else Shard.of_environment(os.environ)
    if found.said_by:
        echo(str(found), stderr=True)
    return found


def _run(
    config: SweepConfig,
    ours: Shard,
    output: Path,
    *,
    jobs: int,
    runs: int,
    retry_failed: bool,
    watch: bool,
    ray: str | None,
) -> None:
    from pqkv.env import usable_cores
    from pqkv.errors import PqkvError
    from pqkv.sweep.ledger import Ledger
    from pqkv.sweep.process import Limits, threads_each
    from pqkv.sweep.run import Terms, run_sweep
    from pqkv_cli.sweep_watch import Lines, Table

    threads = threads_each(config.threads, jobs, usable_cores())
    terms = Terms(jobs, threads, config.in_own_process, Limits(config.limits.seconds, config.limits.bytes))
    with (Table if watch else Lines)() as shown:
        ledger = Ledger(
            output, ours.size(config.count(runs)), shown, retry_failed=retry_failed, threads=threads
        )  # fmt: skip
        if ray is None:
            run_sweep(ours.of(config.cells(runs)), ledger, terms)
        else:
            from pqkv.sweep.on_ray import cluster, run_on_ray

            with cluster(ray):
                run_on_ray(ours.of(config.cells(runs)), ledger, terms)
    state = ledger.state
    echo(
        f"{state.total} cells: {state.measured} run now, {state.found} there before, {state.failed} failed; "
        f"records: {output} (pqkv report {output} -o {output})"
    )
    if state.failed:
        again = "" if retry_failed else "; --retry-failed runs them again"
        raise PqkvError(f"{state.failed} of {state.total} cells failed: {state.first_failure}{again}")
