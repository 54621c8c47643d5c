"""What codebooks learn from: keys and values of calibration text, at the positions that a cache will hold."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from pqkv.codec import code_geometry
from pqkv.codec.codebook_file import Calibration
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.config import CodecCalibration, TrainConfig
from pqkv.errors import ConfigError, DataError, ModelError
from pqkv.lm.capture import capture
from pqkv.lm.contamination import identifying_documents
from pqkv.lm.gradients import capture_gradients
from pqkv.lm.model import LanguageModel
from pqkv.lm.positions import positions_refusal
from pqkv.lm.rope import same_factors_up_to
from pqkv.lm.rotary import layer_rotaries
from pqkv.lm.tokens import holds_special, token_form, token_stream, with_bos
from pqkv.text import Corpus, load_corpus, windows

_log = logging.getLogger("pqkv")
_HELD_OUT = 2048  # sampled positions that are not trained on and only measured
_CHARACTERS = 128  # of text for each token wanted: some 30 times as much as it takes
_BEGINNINGS = 4  # one window of so many begins a sequence

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What codebooks learn from: sampled vectors, `held_out` of them only to measure on, and the text they are of."""

    samples: Samples
    held_out: int
    text: Calibration


def calibrate(lm: LanguageModel, config: TrainConfig, progress: Progress | None = None) -> Calibrated:
    """Run the calibration text through the model and keep a sample. Trainings that differ in nothing but their codes
    (shape, scope, channels, metric, init, iterations) can share it: `train` gives the same bytes as when it makes its
    own. Recipe pqkv learns from no sinks, which stay exact, and asks for positions and the queries' moments too.
    """
    laid = _lay_out(lm, config, progress)
    ours = config.recipe == "pqkv"
    leave_out = min(config.left_out(), laid.tokens.shape[1] - 1)
    total = laid.tokens.size - leave_out * len(laid.tokens)
    held_out = min(_HELD_OUT, total // 5)
    _check_count(config, lm, total - held_out, laid.text.name)
    count = min(config.samples, total - held_out) + held_out
    samples = _captured(lm, laid, count, config.seed, progress, leave_out=leave_out, moments=ours)
    if ours:
        samples = replace(samples, rotary=_understood(lm))
    return Calibrated(samples, held_out, laid.text.model_copy(update={"leave_out": leave_out}))


def _understood(lm: LanguageModel) -> tuple[Rotary, ...] | None:
    """The layers' rotary embedding, None where codecs cannot take it off keys."""
    try:
        return layer_rotaries(lm)
    except ModelError as error:
        _log.warning("%s; the mean of keys stands still", error)
        return None


def calibrate_codecs(
    lm: LanguageModel, config: CodecCalibration, progress: Progress | None = None, *, gradients: bool = False
) -> Calibrated:
    """Run the calibration text through the model and keep all that codecs learn from: every token but the first
    `leave_out` of each window, with positions, rotary embedding, metrics, and `gradients` where they are asked for.
    """
    report = progress or (lambda stage, done, total: None)
    laid = _lay_out(lm, config, progress)
    count = laid.tokens.size
    samples = _captured(lm, laid, count, config.seed, progress, leave_out=config.leave_out, moments=True)
    samples = replace(samples, rotary=layer_rotaries(lm))
    if gradients:
        samples = capture_gradients(
            lm,
            samples,
            laid.tokens,
            count,
            config.seed,
            lambda done, of: report("gradients", done, of),
            starts=laid.starts,
            leave_out=config.leave_out,
        )
    return Calibrated(samples, 0, laid.text)


@dataclass(frozen=True, slots=True, eq=False)
class _LaidOut:
    """Windows (n, T) of calibration text, where each is told to stand, and what is to be said of them."""

    tokens: np.ndarray
    starts: np.ndarray
    text: Calibration


def _captured(
    lm: LanguageModel,
    laid: _LaidOut,
    count: int,
    seed: int,
    progress: Progress | None,
    *,
    leave_out: int = 0,
    moments: bool = False,
) -> Samples:
    report = progress or (lambda stage, done, total: None)
    return capture(
        lm,
        laid.tokens,
        count,
        seed,
        lambda done, of: report("capture", done, of),
        starts=laid.starts,
        leave_out=leave_out,
        moments=moments,
    )


def _lay_out(lm: LanguageModel, config: TrainConfig | CodecCalibration, progress: Progress | None) -> _LaidOut:
    """Read the calibration text and cut windows of it."""
    report = progress or (lambda stage, done, total: None)
    context = _context(lm, config)
    form = token_form(lm, config.bos, parse_special=config.parse_special)
    corpus = load_corpus(config.data, config.split, default="calibration")
    for passed_over in corpus.passed_over:
        _log.warning("%s: %s", corpus.name, passed_over)
    report("tokenize", 0, 1)
    stream = token_stream(lm, _thinned(corpus, config.calibration_tokens), form)
    report("tokenize", 1, 1)
    if len(stream.tokens) < context:
        _log.warning(
            "calibration windows of %d tokens, not %d: %s has no more", len(stream.tokens), context, corpus.name
        )
        context = len(stream.tokens)
    chosen = windows(stream, context, max(1, config.calibration_tokens // context))
    positions = _positions(lm, config, context)
    text = Calibration(
        name=corpus.name,
        split=corpus.split,
        sha256=corpus.sha256,
        tokens=chosen.tokens.size,
        context=context,
        positions=positions if len(chosen.tokens) > 1 else context,
        documents=identifying_documents(stream, chosen.starts, context),
        bos=form.bos,
        special_tokens="text" if holds_special(lm, corpus) and not form.parse_special else "parsed",
    )
    starts = window_starts(len(chosen.tokens), context, positions, config.seed)
    return _LaidOut(with_bos(chosen.tokens, form.bos), starts, text)


def window_starts(count: int, context: int, positions: int, seed: int) -> np.ndarray:
    """Where `count` windows of `context` tokens stand so that they reach `positions`, (count,) int64.

    Keys are turned by their positions, and codebooks know those they were trained at: keys 4,096 positions past them
    lose a hundred times as much (SmolLM2, 4 bits). A text far into a sequence need not be long for it, only told where
    it stands. A quarter of the windows begin a sequence, as every cache does and where the first tokens are like no
    others; the rest stand at places that grow as squares, since short contexts are the more usual ones.
    """
    begin = -(-count // _BEGINNINGS)
    rest = np.arange(1, count - begin + 1) / max(1, count - begin)
    starts = np.concatenate([np.zeros(begin), np.round((positions - context) * rest**2)]).astype(np.int64)
    return np.random.default_rng(seed).permutation(starts)  # so that places in the text and positions are not tied


def _thinned(corpus: Corpus, tokens: int) -> Corpus:
    """A corpus with every so-many-th of its documents, where that leaves far more text than `tokens` take: nobody waits
    for a tokenizer to read what no window is cut from.
    """
    sizes = [len(document.text) for document in corpus.documents]
    wanted = _CHARACTERS * tokens
    stride = max(1, sum(sizes) // wanted)
    while stride > 1 and sum(sizes[::stride]) < wanted:
        stride -= 1
    return corpus if stride == 1 else replace(corpus, documents=corpus.documents[::stride])


def _context(lm: LanguageModel, config: TrainConfig | CodecCalibration) -> int:
    """Length of calibration windows. Raises `ConfigError` for one that was asked for and that the model cannot take; a
    default gives way to the model's positions, and says so.
    """
    refusal = positions_refusal(lm, config.context)
    if refusal is None:
        return config.context
    if "context" in config.model_fields_set:
        raise ConfigError(refusal)
    _log.warning("calibration windows of %d tokens: %s has no more positions", lm.max_positions, lm.name)
    return lm.max_positions


def _positions(lm: LanguageModel, config: TrainConfig | CodecCalibration, context: int) -> int:
    """How many positions windows are spread over: those of the model and of its rotary factors at `context` at most."""
    return max(context, min(config.positions, lm.max_positions, same_factors_up_to(lm, context)))


def _check_count(config: TrainConfig, lm: LanguageModel, vectors: int, text: str) -> None:
    """Raise `DataError` where a text leaves fewer vectors than there are centroids: before the model runs over it."""
    centroids = 2 ** code_geometry(config.code_shape(), lm.head_dim)[1]
    if vectors < centroids:
        raise DataError(
            f"{text} gives {vectors} calibration vectors (a fifth is held out), which cannot train {centroids} "
            f"centroids; {config.remedy(enough_text=False)}"
        )
