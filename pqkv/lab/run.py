"""Windows outermost, methods inside: what is exact is computed once for all of them, and never stored whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from pqkv.cell import run_cell
from pqkv.codec.sizes import CodedSizes
from pqkv.config import EvalConfig, digest_of
from pqkv.env import environment, git_state
from pqkv.errors import PqkvError
from pqkv.lab.config import LabConfig
from pqkv.lab.partial import Partials, Window
from pqkv.lm import load_model
from pqkv.lm.plugin import Attended
from pqkv.lm.tokens import TokenForm
from pqkv.quality.batches import FORWARD_TOKENS
from pqkv.quality.cell_run import CellRun, Shared
from pqkv.quality.cells import Cell, cells, codec_codings
from pqkv.quality.inputs import Inputs, model_inputs
from pqkv.quality.jobs import Ground, Job, ground, jobs
from pqkv.quality.measures import compare_all
from pqkv.quality.modes import coded_states
from pqkv.record import Record, RecordStore

METHODS_TOGETHER = 8  # whose states are held at once: the exact logits of a window are made once for so many
Report = Callable[[str, int, int], None]


@dataclass(slots=True, eq=False)
class _Method:
    """A cell of the lab: its record's description and how it is run."""

    cell: Cell
    job: Job
    digest: str
    run: CellRun
    failure: PqkvError | None = field(default=None)


def run_lab(
    config: LabConfig,
    store: RecordStore | None = None,
    *,
    force: bool = False,
    report: Report | None = None,
    shared: Shared | None = None,
) -> Iterator[tuple[str, Record]]:
    """Measure every method on every text, context and choice of exact tokens; yield names and records as windows of
    one such choice are done. Records are those of `pqkv eval --codec` on the same windows: either finds the other's.

    A method that fails for a reason of its own yields a failed record, and the others go on.
    """
    tell = report or (lambda stage, done, total: None)
    if store is not None:
        store.check_writable()
    methods = config.all_methods()
    tell("load model", 0, 1)
    shared = shared or Shared(load_model(config.model, config.dtype, config.device))
    env, git = environment(), git_state()
    codings = None
    for wanted in config.evaluations():
        on = ground(wanted, shared, [])
        codings = codings or codec_codings(wanted, shared.lm, tell)
        grid = zip(cells(wanted, codings), jobs(wanted, shared, on, codings), strict=True)
        listed = [_method(shared, wanted, on, cell, job) for cell, job in grid]
        missing = [m for m in listed if force or store is None or store.find(m.digest) is None]
        tokens = next(iter(on.chosen.values())).tokens
        parts = Partials(store.folder if store is not None else None)
        if force:
            for method in missing:
                parts.forget(method.digest)
        _measure(missing, tokens, shared, wanted, on.form, parts, tell)
        for name, method in zip(methods, listed, strict=True):
            yield (
                name,
                run_cell(
                    partial(_outcome, method, tokens, parts),
                    kind="eval",
                    config=method.job.config,
                    seed=wanted.seed,
                    env=env,
                    git=git,
                    notes=method.job.notes,
                    store=store,
                    force=force,
                ),
            )
            parts.forget(method.digest)


def _method(shared: Shared, config: EvalConfig, on: Ground, cell: Cell, job: Job) -> _Method:
    run = CellRun(shared, config, cell, on.backend, (on.corpus, on.form), lambda done, of: None)
    return _Method(cell, job, digest_of(job.config), run)


def _measure(
    methods: Sequence[_Method],
    tokens: np.ndarray,
    shared: Shared,
    config: EvalConfig,
    form: TokenForm,
    parts: Partials,
    tell: Report,
) -> None:
    """Every window of every method that has no part yet."""
    inputs = model_inputs(tokens, 0, form, config.score_after)
    size = max(1, FORWARD_TOKENS // tokens.shape[1])
    total, done = len(methods) * len(tokens), 0
    label = f"{config.data}, {config.context[0]} tokens, {config.mode[0]}"
    for start in range(0, len(tokens), size):
        rows = range(start, min(start + size, len(tokens)))
        ids = torch.from_numpy(inputs.ids[start : rows.stop]).to(shared.lm.device)
        for first in range(0, len(methods), METHODS_TOGETHER):
            group = methods[first : first + METHODS_TOGETHER]
            unmeasured = [m for m in group if not all(parts.has(m.digest, row) for row in rows)]
            if unmeasured:
                _batch(unmeasured, ids, rows, inputs, shared, config, parts)
            done += len(group) * len(rows)
            tell(label, done, total)


def _batch(
    methods: Sequence[_Method],
    ids: torch.Tensor,
    rows: range,
    inputs: Inputs,
    shared: Shared,
    config: EvalConfig,
    parts: Partials,
) -> None:
    """Some windows through some methods."""
    exact = shared.exact(ids)
    ran: list[tuple[_Method, torch.Tensor, CodedSizes, Attended, float]] = []
    for method in methods:
        sizes, attended, clock = CodedSizes(), Attended(), time.perf_counter()
        try:
            states = coded_states(
                shared.lm,
                ids,
                method.cell.coding.codes,
                config.cache(),
                method.cell.mode,
                coded_sinks=method.cell.coded_sinks,
                sizes=None if rows.start else sizes,
                attended=attended,
            )
        except PqkvError as error:
            method.failure = error
            continue
        ran.append((method, states, sizes, attended, (time.perf_counter() - clock) / len(rows)))
    for b, row in enumerate(rows):
        targets = torch.from_numpy(inputs.targets[row]).to(shared.lm.device)
        scored = slice(inputs.first[row], inputs.first[row] + len(targets))
        clock = time.perf_counter()
        coded = [states[b, scored] for _, states, _, _, _ in ran]
        found = compare_all(exact[b, scored], coded, targets, config.topk, shared.lm.head)
        compared = (time.perf_counter() - clock) / max(1, len(ran))
        for (method, _, sizes, attended, seconds), measures in zip(ran, found, strict=True):
            shared.exact.check(measures.nll_exact)
            # bytes and columns are those of the batch: they stand with its first window
            counted = (CodedSizes(), Attended()) if b else (sizes, attended)
            parts.write(method.digest, row, Window(measures, *counted, seconds + compared))


def _outcome(method: _Method, tokens: np.ndarray, parts: Partials) -> dict[str, Any]:
    if method.failure is not None:
        raise method.failure
    windows: list[Window] = []
    for row in range(len(tokens)):
        window = parts.read(method.digest, row)
        if window is None:
            raise PqkvError(f"the part of window {row} was lost; run the lab again")
        windows.append(window)
    attended = Attended()
    for window in windows:
        attended.add(window.attended)
    outcome = method.run.outcome(tokens, [window.measures for window in windows], windows[0].sizes, attended)
    return {**outcome, "seconds": sum(window.seconds for window in windows)}
