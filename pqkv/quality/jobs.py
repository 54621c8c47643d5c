"""The jobs of an evaluation in the order they run: cells, layers alone, noise floors. `evaluate` runs this list and
`plan` prints it, so that neither knows a job that the other does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from pqkv.config import STEPWISE, EvalConfig
from pqkv.kernels import ChosenBackend, choose_backend
from pqkv.lm.positions import positions_note
from pqkv.lm.tokens import TokenForm, token_form
from pqkv.quality.by_layer import MODES as BY_LAYER_MODES
from pqkv.quality.by_layer import measure_by_layer
from pqkv.quality.cell_run import CellRun, Shared
from pqkv.quality.cells import Cell, Coding, cells, describe
from pqkv.quality.checks import check_named, check_positions, check_room, coding_notes
from pqkv.quality.inputs import model_inputs
from pqkv.quality.memory import Estimate, MemoryWatch, estimate, estimate_floor
from pqkv.quality.noise_floor import describe_floor, floors, measure_floor
from pqkv.text import Corpus, TokenStream, WindowSet, windows

Step = Callable[[int, int], None]
Measure = Callable[[Step], dict[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Ground:
    """What the jobs of an evaluation stand on: backend, text, its form as tokens, and the windows of each context, with
    and without one token more than it.
    """

    backend: ChosenBackend
    corpus: Corpus
    form: TokenForm
    stream: TokenStream
    chosen: dict[tuple[int, bool], WindowSet]


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Something with a record of its own: `config` describes it, `measure` runs it and is told whom to report steps to.
    Where default codebooks are not `trained` yet, `config` is not what its record will have.
    """

    label: str
    kind: str
    config: dict[str, Any]
    trained: bool
    estimate: Estimate
    notes: list[str]
    measure: Measure


def ground(config: EvalConfig, shared: Shared, named: list[Coding]) -> Ground:
    """Read and tokenize the text and choose windows. Raises what is wrong with model, text, form or the `named`
    codebooks.
    """
    lm = shared.lm
    check_positions(config, lm)
    backend = choose_backend(config.backend, lm.device, lm.dtype, head_dim=lm.head_dim, fallback=config.fallback)
    form = token_form(lm, config.bos, parse_special=config.parse_special, chat=config.chat)
    check_room(config, lm, form)
    check_named(config, lm, named)
    corpus, stream = shared.stream(config.data, config.split, form)
    # the last token of a context that is decoded is predicted from as well: its window holds one more, to score that
    chosen = {
        (context, more): windows(stream, context + more, config.windows)
        for context in config.context
        for more in {mode == "decode" for mode in config.mode} | ({False} if config.noise_floor else set())
    }
    return Ground(backend, corpus, form, stream, chosen)


def jobs(config: EvalConfig, shared: Shared, on: Ground, found: list[Coding]) -> list[Job]:
    """The jobs of `config` with the codings `found`: contexts outermost, layers alone behind their cell, floors last.
    Raises `ContaminationError` and `ConfigError` for codebooks that cannot be evaluated on these windows.
    """
    notes = coding_notes(config, shared.lm, (on.stream, on.form), found, on.chosen)
    listed: list[Job] = []
    for cell in cells(config, found):
        more = cell.mode == "decode"
        said = notes[found.index(cell.coding), cell.context, more]
        listed += _of_cell(config, shared, on, cell, on.chosen[cell.context, more].tokens, said)
    if config.noise_floor:
        for context in config.context:
            listed += _floors(config, shared, on, context)
    return listed


def _of_cell(
    config: EvalConfig, shared: Shared, on: Ground, cell: Cell, tokens: np.ndarray, said: list[str]
) -> list[Job]:
    """A cell, and where layers alone are asked for that as well."""
    lm, text = shared.lm, (on.corpus, on.form)
    newest = config.decode_tokens if cell.mode == "decode" else 0
    notes = [*said, *_conversation(config, on.form, tokens, newest), *on.corpus.passed_over]
    if stretched := positions_note(lm, cell.context):
        notes.append(stretched)
    if cell.mode in STEPWISE and on.backend.note:
        notes.append(on.backend.note)
    if cell.mode in STEPWISE and cell.mode != "token" and on.backend.prefill_note:
        notes.append(on.backend.prefill_note)
    if len(tokens) < (config.windows or 0):
        notes.append(f"{config.windows} windows asked for, the text has {len(tokens)}")
    about = describe(cell, config, lm, text, len(tokens), on.backend.name)
    expected = estimate(lm, config, cell, len(tokens))
    trained = cell.coding.codes is not None or not cell.coding.bits

    def whole(step: Step) -> dict[str, Any]:
        return CellRun(shared, config, cell, on.backend, text, step).measure(tokens)

    listed = [Job(cell.label, "eval", about, trained, expected, notes, whole)]
    if config.by_layer and cell.mode in BY_LAYER_MODES and cell.coding.bits:
        label, own = f"{cell.label}, layer by layer", {"metrics": ["kld"], "topk": [1], "control": False}
        layers = partial(measure_by_layer, cell, tokens, config, shared.exact, on.form)
        # takes what its cell does: a layer that stays exact goes through the schedule with the same copies
        watched = partial(_watched, label, expected, layers)
        listed.append(
            Job(label, "eval-by-layer", {**about, **own, "by_layer": True}, trained, expected, notes, watched)
        )
    return listed


def _floors(config: EvalConfig, shared: Shared, on: Ground, context: int) -> list[Job]:
    """The noise floors at a context."""
    lm, tokens = shared.lm, on.chosen[context, False].tokens
    listed, notes = [], [*_conversation(config, on.form, tokens, 0), *on.corpus.passed_over]
    for floor in floors(lm):
        label = f"{floor.label}, {context} tokens"
        about = describe_floor(floor, context, config, lm, (on.corpus, on.form), len(tokens))
        expected = estimate_floor(lm, floor, context, len(tokens))
        measure = partial(measure_floor, floor, tokens, config, shared.exact, on.form)
        watched = partial(_watched, label, expected, measure)
        listed.append(Job(label, "eval", about, True, expected, notes, watched))
    return listed


def _conversation(config: EvalConfig, form: TokenForm, tokens: np.ndarray, newest: int) -> list[str]:
    """What was done to windows (n, T) that go through a chat template."""
    if form.chat is None:
        return []
    inputs = model_inputs(tokens[:1], newest, form, config.score_after)
    said = (
        f"windows go through the chat template, {form.template_tokens} of {inputs.ids.shape[1]} tokens: half the text "
        f"is the user's, half the assistant's answer, of which {inputs.targets.shape[1]} tokens are scored"
    )
    return [said + ("; the template trims messages, the text is left as it is" if form.chat.trims else "")]


def _watched(label: str, expected: Estimate, measure: Measure, step: Step) -> dict[str, Any]:
    """The outcome of `measure`, with the memory it took beside what was expected."""
    watch = MemoryWatch(expected, label)
    outcome = measure(step)
    outcome["tables"]["memory_plan"] = [watch.row(expected)]
    outcome["notes"] += watch.notes
    return outcome
