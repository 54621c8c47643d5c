"""`pqkv eval`: what a coded, paged cache costs, cell by cell, beside the exact cache on the same windows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pqkv.cell import run_cell
from pqkv.config import STEPWISE, EvalConfig
from pqkv.env import environment, git_state
from pqkv.errors import ConfigError
from pqkv.kernels import ChosenBackend, check_backend, choose_backend
from pqkv.kernels.faults import fault_of
from pqkv.lm import LanguageModel, load_model
from pqkv.lm.contamination import check_contamination
from pqkv.lm.positions import positions_note, positions_refusal
from pqkv.lm.rope import check_rope, regime_conflict
from pqkv.lm.tokens import TokenForm, token_form
from pqkv.lm.train import check_codebooks
from pqkv.quality.by_layer import MODES as BY_LAYER_MODES
from pqkv.quality.by_layer import measure_by_layer
from pqkv.quality.cell_run import CellRun, Shared
from pqkv.quality.cells import Cell, Coding, cells, default_codings, describe, named_codings
from pqkv.quality.noise_floor import floor_cells
from pqkv.record import Record, RecordStore
from pqkv.text import Corpus, TokenStream, WindowSet, windows


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
    _check_fault(config)
    if store is not None:
        store.check_writable()
    shared = shared or Shared(load_model(config.model, config.dtype, config.device, config.device_map))
    lm = shared.lm
    _check_positions(config, lm)
    backend = choose_backend(config.backend, lm.device, lm.dtype, fallback=config.fallback)
    form = token_form(lm, config.bos, parse_special=config.parse_special)
    corpus, stream = shared.stream(config.data, config.split, form)
    # the last token of a context that is decoded is predicted from as well: its window holds one more, to score that
    chosen = {
        (context, more): windows(stream, context + more, config.windows)
        for context in config.context
        for more in {mode == "decode" for mode in config.mode} | ({False} if config.noise_floor else set())
    }
    for path, coding in zip(config.codebooks, named, strict=True):
        if coding.header is not None:
            check_codebooks(coding.header, lm, Path(path).name)
    found = named or default_codings(config, lm, lambda stage, done, total: tell(Progress(stage, done, total)))
    notes = _notes(config, lm, (stream, form), found, chosen)
    text = corpus, form
    jobs: list[_Job] = []
    for cell in cells(config, found):
        key = cell.context, cell.mode == "decode"
        tokens = chosen[key].tokens
        said = [*notes[(found.index(cell.coding), *key)], *corpus.passed_over]
        if stretched := positions_note(lm, cell.context):
            said.append(stretched)
        if cell.mode in STEPWISE and backend.note:
            said.append(backend.note)
        if len(tokens) < (config.windows or 0):
            said.append(f"{config.windows} windows asked for, the text has {len(tokens)}")
        about = describe(cell, config, lm, text, len(tokens), backend.name)
        whole_cell = partial(_measure, shared, config, cell, backend, text, tokens)
        jobs.append(_Job(cell.label, "eval", about, whole_cell, said))
        if config.by_layer and cell.mode in BY_LAYER_MODES and cell.coding.books is not None:
            one = {"metrics": ["kld"], "topk": [1], "control": False, "by_layer": True}
            layers = partial(measure_by_layer, cell, tokens, config, shared.exact, form)
            jobs.append(_Job(f"{cell.label}, layer by layer", "eval-by-layer", {**about, **one}, layers, said))
    if config.noise_floor:
        whole = {context: chosen[context, False].tokens for context in config.context}
        for label, about, floor in floor_cells(config, shared.exact, text, whole):
            jobs.append(_Job(label, "eval", about, floor, [*corpus.passed_over]))
    env, git = environment(), git_state()
    for number, job in enumerate(jobs, 1):
        yield run_cell(
            partial(job.measure, _job_step(tell, job.label, number, len(jobs))),
            kind=job.kind,
            config=job.config,
            seed=config.seed,
            env=env,
            git=git,
            notes=job.notes,
            store=store,
            force=force,
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """A cell that can be run: `measure` is told whom to report steps to."""

    label: str
    kind: str
    config: dict[str, Any]
    measure: Callable[[Callable[[int, int], None]], dict[str, Any]]
    notes: list[str]


def _measure(
    shared: Shared,
    config: EvalConfig,
    cell: Cell,
    backend: ChosenBackend,
    text: tuple[Corpus, TokenForm],
    tokens: np.ndarray,
    step: Callable[[int, int], None],
) -> dict[str, Any]:
    return CellRun(shared, config, cell, backend, text, step).measure(tokens)


def _notes(
    config: EvalConfig,
    lm: LanguageModel,
    text: tuple[TokenStream, TokenForm],
    found: list[Coding],
    chosen: dict[tuple[int, bool], WindowSet],
) -> dict[tuple[int, int, bool], list[str]]:
    """What records have to say of each coding (by its number) and choice of windows. Raises `ContaminationError` and
    `ConfigError` for codebooks that may not, or cannot, be evaluated on them.
    """
    stream, form = text
    notes: dict[tuple[int, int, bool], list[str]] = {}
    for i, coding in enumerate(found):
        for (context, more), window_set in chosen.items():
            said = notes[i, context, more] = []
            if coding.header is None:
                continue
            calibration = coding.header.calibration
            if conflict := regime_conflict(lm, calibration.context, context):
                raise ConfigError(conflict)
            if seen := check_contamination(
                coding.header, stream, window_set.starts, context + more, allowed=config.allow_contaminated
            ):
                said.append(seen)
            if context > calibration.reach:
                said.append(
                    f"the codebooks know keys of positions up to {calibration.reach}, those past them are coded badly; "
                    f"train codebooks with --positions {context}"
                )
            if calibration.bos != form.bos:
                said.append(_other_beginning(calibration.bos, form.bos))
    return notes


def _check_fault(config: EvalConfig) -> None:
    """Raise `ConfigError` for a fault in a mode that does not go through it: its record would show no damage."""
    fault = fault_of(config.backend)
    allowed = () if fault is None else ("decode",) if fault.position_shift else ("decode", "token")
    wrong = [mode for mode in config.mode if mode not in allowed]
    if fault is not None and wrong:
        raise ConfigError(
            f"backend '{config.backend}' is a fault of decoding and mode {wrong[0]} does not decode through it; "
            f"use --mode {' or '.join(allowed)}"
        )


def _check_positions(config: EvalConfig, lm: LanguageModel) -> None:
    """Raise `ConfigError` for a context that the model has no positions for, and for steps over which its rotary
    embedding changes: they would differ from one forward by themselves.
    """
    if refusal := positions_refusal(lm, max(config.context)):
        raise ConfigError(refusal)
    for context in config.context:
        first = {"token": 1, "chunk": config.chunk_size, "decode": context - config.decode_tokens}
        for mode in config.mode:
            check_rope(lm, context, first=first.get(mode))


def _other_beginning(calibrated: int | None, evaluated: int | None) -> str:
    words = [
        "with no beginning-of-sequence token" if bos is None else f"with token {bos}" for bos in (calibrated, evaluated)
    ]
    return f"windows begin {words[1]}, those that the codebooks were calibrated on began {words[0]}"


def _job_step(tell: Report, label: str, number: int, total: int) -> Callable[[int, int], None]:
    return lambda done, of: tell(Progress(label, done, of, number, total))
