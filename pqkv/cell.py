"""One cell of an experiment: found where it ran before, else run, timed and recorded, whatever becomes of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from pqkv.config import digest_of
from pqkv.errors import PqkvError, RecordError, memory_is_short
from pqkv.lock import alone
from pqkv.reasons import reason
from pqkv.record import Record, RecordStore, utc_now

_log = logging.getLogger("pqkv")


def run_cell(
    measure: Callable[[], dict[str, Any]],
    *,
    kind: str,
    config: dict[str, Any],
    seed: int,
    env: dict[str, Any],
    git: dict[str, Any],
    notes: Sequence[str] = (),
    store: RecordStore | None = None,
    force: bool = False,
) -> Record:
    """The record of the cell that `config` describes: the one `store` holds (unless `force`), or what `measure` finds
    now, which goes to `store`.

    `measure` returns fields of a `Record`: metrics, tables, samples, notes; `seconds` if the work was done before.
    `notes` stand after its own, and in a failed record too. A cell that fails for a reason of its own (a `PqkvError`,
    memory that runs short) is a failed record; any other error is raised. A record is locked while it is measured: of
    two processes that want it one measures, the other waits and finds it.
    """
    digest = digest_of(config)

    def measured() -> Record:
        return _run(measure, kind, config, digest, seed, env, git, notes, store)

    if store is None:
        return measured()
    known = None if force else store.find(digest)
    if known is not None:
        return known
    with alone(store.lock_path(digest), _log.warning):
        known = None if force else store.find(digest)
        return known or measured()


def _run(
    measure: Callable[[], dict[str, Any]],
    kind: str,
    config: dict[str, Any],
    digest: str,
    seed: int,
    env: dict[str, Any],
    git: dict[str, Any],
    notes: Sequence[str],
    store: RecordStore | None,
) -> Record:
    started, clock = utc_now(), time.perf_counter()
    try:
        outcome = {"status": "ok", **measure()}
    except (PqkvError, RuntimeError, MemoryError) as error:
        outcome = _failure(error)
    seconds = time.perf_counter() - clock

    def record_of(outcome: dict[str, Any]) -> Record:
        said, took = [*outcome.pop("notes", []), *notes], outcome.pop("seconds", seconds)
        return Record(
            kind=kind, config=config, digest=digest, env=env, git=git, seed=seed, started_at=started, seconds=took,
            notes=said, **outcome,
        )  # fmt: skip

    try:
        record = record_of(outcome)
    except RecordError as error:  # a figure that is no number: the cell has failed, the next one can run
        record = record_of(_failure(error))
    if store is not None:
        store.write(record)
    return record


def _failure(error: Exception) -> dict[str, Any]:
    """The outcome of a cell that failed for a reason of its own; any other error is raised again."""
    if not isinstance(error, PqkvError) and not memory_is_short(error):
        raise error
    own = isinstance(error, PqkvError) and str(error).strip()  # one line already, however long
    return {"status": "failed", "error": " ".join(str(error).split()) if own else reason(error)}
