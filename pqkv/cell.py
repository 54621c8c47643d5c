"""One cell of an experiment: found where it ran before, else run, timed and recorded, whatever becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pqkv.config import digest_of
from pqkv.errors import PqkvError, memory_is_short
from pqkv.record import Record, RecordStore, utc_now


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

    `measure` returns fields of a `Record`: metrics, tables, samples, notes. `notes` stand after its own, and in a
    failed record too. A cell that fails for a reason of its own (a `PqkvError`, memory that runs short) is a failed
    record; any other error is raised.
    """
    digest = digest_of(config)
    known = store.find(digest) if store is not None and not force else None
    if known is not None:
        return known
    started, clock = utc_now(), time.perf_counter()
    try:
        outcome = {"status": "ok", **measure()}
    except (PqkvError, RuntimeError, MemoryError) as error:
        outcome = _failure(error)
    outcome["notes"] = [*outcome.get("notes", []), *notes]
    record = Record(
        kind=kind,
        config=config,
        digest=digest,
        env=env,
        git=git,
        seed=seed,
        started_at=started,
        seconds=time.perf_counter() - clock,
        **outcome,
    )
    if store is not None:
        store.write(record)
    return record


def _failure(error: Exception) -> dict[str, Any]:
    """The outcome of a cell that failed for a reason of its own; any other error is raised again."""
    if not isinstance(error, PqkvError) and not memory_is_short(error):
        raise error
    return {"status": "failed", "error": str(error).splitlines()[0] if str(error) else type(error).__name__}
