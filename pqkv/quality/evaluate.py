"""`pqkv eval`: what a coded, paged cache costs, cell by cell, beside the exact cache on the same windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from pqkv.cell import run_cell
from pqkv.config import EvalConfig
from pqkv.env import environment, git_state
from pqkv.kernels import check_backend
from pqkv.lm import load_model
from pqkv.lm.rope_variant import rope_variant
from pqkv.quality.cell_run import Shared
from pqkv.quality.cells import codec_codings, default_codings, named_codings
from pqkv.quality.checks import check_fault
from pqkv.quality.jobs import ground, jobs
from pqkv.record import Record, RecordStore


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an evaluation stands: `done` of `total` units of `stage`, in cell `cell` of `cells`."""

    stage: str
    done: int
    total: int
    cell: int = 0
    cells: int = 0


Report = Callable[[Progress], None]


def evaluate(
    config: EvalConfig,
    store: RecordStore | None = None,
    *,
    force: bool = False,
    report: Report | None = None,
    shared: Shared | None = None,
) -> Iterator[Record]:
    """Run the grid and yield each cell's record as it is finished; a record that `store` holds is not run again.

    `shared` holds the model of `config`, loaded before, and what earlier evaluations of it left to use again.

    A cell that fails for a reason of its own (out of pages, out of memory) yields a failed record and the grid goes
    on; a wrong model, text or codebook raises before the first cell.
    """
    tell = report or (lambda progress: None)
    named = named_codings(config)  # a bad file is told before a model is loaded
    check_backend(config.backend)
    check_fault(config)
    if store is not None:
        store.check_writable()
    shared = shared or Shared(
        load_model(
            config.model, config.dtype, config.device, config.device_map, rope_variant(config.rope, config.rope_factor)
        )
    )
    on = ground(config, shared, named)

    def learning(stage: str, done: int, of: int) -> None:
        tell(Progress(stage, done, of))

    codings = codec_codings if config.codec else default_codings
    found = named or codings(config, shared.lm, learning)
    listed = jobs(config, shared, on, found)
    env, git = environment(), git_state()
    for number, job in enumerate(listed, 1):
        yield run_cell(
            partial(job.measure, _step(tell, job.label, number, len(listed))),
            kind=job.kind,
            config=job.config,
            seed=config.seed,
            env=env,
            git=git,
            notes=job.notes,
            store=store,
            force=force,
        )


def _step(tell: Report, label: str, number: int, total: int) -> Callable[[int, int], None]:
    return lambda done, of: tell(Progress(label, done, of, number, total))
