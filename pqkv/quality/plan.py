"""What an evaluation would run: its jobs, the memory each would take, and which have a record; nothing is run."""

from __future__ import annotations

from dataclasses import dataclass

from pqkv.config import EvalConfig, digest_of
from pqkv.kernels import check_backend
from pqkv.lm import LanguageModel
from pqkv.quality.cell_run import Shared
from pqkv.quality.cells import kept_codings, named_codings
from pqkv.quality.checks import check_fault
from pqkv.quality.jobs import Job, ground, jobs
from pqkv.record import RecordStore


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job of an evaluation. `recorded` is None where no store was asked, False where default codebooks would be
    trained first: such a job has no record yet.
    """

    job: Job
    recorded: bool | None


def plan(config: EvalConfig, lm: LanguageModel, store: RecordStore | None = None) -> list[PlannedJob]:
    """The jobs of `config` in the order they would run. Texts are read and counted; no codebook is trained.

    Raises what running it would raise before its first cell, as far as that needs no training.
    """
    named = named_codings(config)
    check_backend(config.backend)
    check_fault(config)
    shared = Shared(lm)
    listed = jobs(config, shared, ground(config, shared, named), named or kept_codings(config, lm))
    return [PlannedJob(job, _recorded(job, store)) for job in listed]


def _recorded(job: Job, store: RecordStore | None) -> bool | None:
    return None if store is None else job.trained and store.find(digest_of(job.config)) is not None
