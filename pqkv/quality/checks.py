"""What can be wrong with an evaluation as a whole, told before its first cell: faults, positions, codebooks."""

from __future__ import annotations

from pathlib import Path

from pqkv.config import EvalConfig
from pqkv.errors import ConfigError
from pqkv.kernels.faults import fault_of
from pqkv.lm import LanguageModel
from pqkv.lm.contamination import check_contamination
from pqkv.lm.positions import positions_refusal
from pqkv.lm.rope import check_rope, regime_conflict
from pqkv.lm.tokens import TokenForm
from pqkv.lm.train import check_codebooks
from pqkv.quality.cells import Coding
from pqkv.text import TokenStream, WindowSet


def check_fault(config: EvalConfig) -> None:
    """Raise `ConfigError` for a fault in a mode that does not go through it: its record would show no damage."""
    fault = fault_of(config.backend)
    allowed = () if fault is None else ("decode",) if fault.position_shift else ("decode", "token")
    wrong = [mode for mode in config.mode if mode not in allowed]
    if fault is not None and wrong:
        raise ConfigError(
            f"backend '{config.backend}' is a fault of decoding and mode {wrong[0]} does not decode through it; "
            f"use --mode {' or '.join(allowed)}"
        )


def check_positions(config: EvalConfig, lm: LanguageModel) -> None:
    """Raise `ConfigError` for a context that the model has no positions for, and for steps over which its rotary
    embedding changes: they would differ from one forward by themselves.
    """
    if refusal := positions_refusal(lm, max(config.context)):
        raise ConfigError(refusal)
    for context in config.context:
        first = {"token": 1, "chunk": config.chunk_size, "decode": context - config.decode_tokens}
        for mode in config.mode:
            check_rope(lm, context, first=first.get(mode))


def check_named(config: EvalConfig, lm: LanguageModel, named: list[Coding]) -> None:
    """Raise `CodebookError` for a codebook file of `config` that was made for another model."""
    for path, coding in zip(config.codebooks, named, strict=True):
        if coding.header is not None:
            check_codebooks(coding.header, lm, Path(path).name)


def check_room(config: EvalConfig, lm: LanguageModel, form: TokenForm) -> None:
    """Raise `ConfigError` for a context in which a chat template leaves no token to ask with or none to answer."""
    least = form.template_tokens + 2
    if form.chat is not None and min(config.context) < least:
        raise ConfigError(
            f"context {min(config.context)}: the chat template of {lm.name} takes {form.template_tokens} tokens of it "
            f"and leaves no text to ask and answer with; raise --context to {least} or more"
        )


def coding_notes(
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
            calibration = coding.calibration
            if calibration is None:
                continue
            if conflict := regime_conflict(lm, calibration.context, context):
                raise ConfigError(conflict)
            if seen := check_contamination(
                calibration, stream, window_set.starts, context + more, allowed=config.allow_contaminated
            ):
                said.append(seen)
            if context > calibration.reach:
                said.append(
                    f"the codebooks know keys of positions up to {calibration.reach}, those past them are coded badly; "
                    f"train codebooks with --positions {context}"
                )
            if calibration.leave_out and (few := _fewest_exact(config)) < calibration.leave_out:
                said.append(
                    f"the codebooks know nothing like the first {calibration.leave_out} tokens: where fewer of them "
                    f"than that stay exact (here {few}), train codebooks with --leave-out {few}"
                )
            if form.chat is not None:
                said.append("the codebooks were calibrated on windows of plain text, without a chat template")
            elif calibration.bos != form.bos:
                said.append(_other_beginning(calibration.bos, form.bos))
    return notes


def _fewest_exact(config: EvalConfig) -> int:
    """First tokens that every cell keeps exact."""
    return min(min(config.coded_sinks) if mode == "all-coded" else config.sink_tokens for mode in config.mode)


def _other_beginning(calibrated: int | None, evaluated: int | None) -> str:
    words = [
        "with no beginning-of-sequence token" if bos is None else f"with token {bos}" for bos in (calibrated, evaluated)
    ]
    return f"windows begin {words[1]}, those that the codebooks were calibrated on began {words[0]}"
