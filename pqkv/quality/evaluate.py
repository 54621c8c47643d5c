"""`pqkv eval`: what a coded, paged cache costs, cell by cell, beside the exact cache on the same windows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqkv.config import EvalConfig, digest_of
from pqkv.env import environment, git_state
from pqkv.errors import ConfigError, PqkvError, memory_is_short
from pqkv.kernels import check_backend, choose_backend
from pqkv.lm import load_model
from pqkv.lm.contamination import check_contamination
from pqkv.lm.train import check_codebooks
from pqkv.quality.cell_run import CellRun, ExactLogits
from pqkv.quality.cells import Cell, cells, default_codings, describe, named_codings
from pqkv.record import Record, RecordStore, utc_now
from pqkv.text import load_corpus, tokenize, windows


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
    config: EvalConfig, store: RecordStore | None = None, *, force: bool = False, report: Report | None = None
) -> Iterator[Record]:
    """Run the grid and yield each cell's record as it is finished; a record that `store` holds is not run again.

    A cell that fails for a reason of its own (out of pages, out of memory) yields a failed record and the grid goes
    on; a wrong model, text or codebook raises before the first cell.
    """
    tell = report or (lambda progress: None)
    named = named_codings(config)  # a bad file is told before a model is loaded
    check_backend(config.backend)
    if store is not None:
        store.check_writable()
    lm = load_model(config.model, config.dtype, config.device, config.device_map)
    if max(config.context) > lm.max_positions:
        raise ConfigError(
            f"context {max(config.context)} is beyond the {lm.max_positions} positions of {lm.name}; "
            "lower --context or take a model with more positions"
        )
    backend = choose_backend(config.backend, lm.device, lm.dtype, fallback=config.fallback)
    corpus = load_corpus(config.data, config.split, default="test")
    stream = tokenize(corpus, lm.encode, lm.separator)
    chosen = {context: windows(stream, context, config.windows) for context in config.context}
    for path, coding in zip(config.codebooks, named, strict=True):
        if coding.header is not None:
            check_codebooks(coding.header, lm, Path(path).name)
    found = named or default_codings(config, lm, lambda stage, done, total: tell(Progress(stage, done, total)))
    notes: dict[tuple[int, int], list[str]] = {}
    for i, coding in enumerate(found):
        for context, window_set in chosen.items():
            note = coding.header and check_contamination(
                coding.header, stream, window_set.starts, context, allowed=config.allow_contaminated
            )
            notes[i, context] = [note] if note else []
    grid = cells(config, found)
    env, git = environment(), git_state()
    exact = ExactLogits(lm)
    for number, cell in enumerate(grid, 1):
        window_set = chosen[cell.context]
        described = describe(cell, config, lm, corpus, len(window_set.tokens), backend.name)
        digest = digest_of(described)
        known = store.find(digest) if store is not None and not force else None
        if known is not None:
            yield known
            continue
        started, clock = utc_now(), time.perf_counter()
        run = CellRun(lm, config, cell, backend.run, exact, _cell_step(tell, cell, number, len(grid)))
        outcome: dict[str, Any] = {"status": "ok"}
        try:
            outcome |= run.measure(window_set.tokens)
        except (PqkvError, RuntimeError, MemoryError) as error:
            outcome = _failure(error)
        extra = notes[found.index(cell.coding), cell.context]
        if run.stepwise and backend.note:
            extra = [*extra, backend.note]
        if len(window_set.tokens) < (config.windows or 0):
            extra = [*extra, f"{config.windows} windows asked for, the text has {len(window_set.tokens)}"]
        outcome["notes"] = [*outcome.get("notes", []), *extra]
        record = Record(
            kind="eval",
            config=described,
            digest=digest,
            env=env,
            git=git,
            seed=config.seed,
            started_at=started,
            seconds=time.perf_counter() - clock,
            **outcome,
        )
        if store is not None:
            store.write(record)
        yield record


def _failure(error: Exception) -> dict[str, Any]:
    """The outcome of a cell that failed for a reason of its own; any other error is raised again."""
    if not isinstance(error, PqkvError) and not memory_is_short(error):
        raise error
    return {"status": "failed", "error": str(error).splitlines()[0] if str(error) else type(error).__name__}


def _cell_step(tell: Report, cell: Cell, number: int, total_cells: int) -> Callable[[int, int], None]:
    return lambda done, total: tell(Progress(cell.label, done, total, number, total_cells))
