"""Train codebooks for a model: calibration text -> captured keys and values -> k-means -> codebooks with provenance."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import overload

import torch
from torch import Tensor

from pqkv.codec import CodebookSet, code_geometry
from pqkv.codec.codebook_file import Calibration, CodebookHeader, ModelIdentity
from pqkv.codec.training import relative_error, train_codebooks
from pqkv.config import TrainConfig
from pqkv.errors import CodebookError, ConfigError, DataError
from pqkv.lm.capture import Samples, capture
from pqkv.lm.contamination import identifying_documents
from pqkv.lm.model import LanguageModel
from pqkv.lm.positions import positions_refusal
from pqkv.lm.tokens import holds_special, token_form, token_stream, with_bos
from pqkv.text import load_corpus, windows

_log = logging.getLogger("pqkv")
_HELD_OUT = 2048  # sampled positions that are not trained on and only measured

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What codebooks learn from: sampled vectors, `held_out` of them only to measure on, and the text they are of."""

    samples: Samples
    held_out: int
    text: Calibration


def calibrate(lm: LanguageModel, config: TrainConfig, progress: Progress | None = None) -> Calibrated:
    """Run the calibration text through the model and keep a sample. Trainings that differ in nothing but their codes
    (shape, scope, channels, metric, iterations) can share it: `train` gives the same bytes as when it makes its own.
    """
    report = progress or (lambda stage, done, total: None)
    context = _context(lm, config)
    form = token_form(lm, config.bos, parse_special=config.parse_special)
    corpus = load_corpus(config.data, config.split, default="calibration")
    for passed_over in corpus.passed_over:
        _log.warning("%s: %s", corpus.name, passed_over)
    report("tokenize", 0, 1)
    stream = token_stream(lm, corpus, form)
    if len(stream.tokens) < context:
        _log.warning(
            "calibration windows of %d tokens, not %d: %s has no more", len(stream.tokens), context, corpus.name
        )
        context = len(stream.tokens)
    chosen = windows(stream, context, max(1, config.calibration_tokens // context))
    total = chosen.tokens.size
    held_out = min(_HELD_OUT, total // 5)
    _check_count(config, lm, total - held_out, corpus.name)
    samples = capture(
        lm,
        with_bos(chosen.tokens, form.bos),
        min(config.samples, total - held_out) + held_out,
        config.seed,
        lambda done, of: report("capture", done, of),
    )
    text = Calibration(
        name=corpus.name,
        split=corpus.split,
        sha256=corpus.sha256,
        tokens=total,
        context=context,
        documents=identifying_documents(stream, chosen.starts, context),
        bos=form.bos,
        special_tokens="text" if holds_special(lm, corpus) and not form.parse_special else "parsed",
    )
    return Calibrated(samples, held_out, text)


def _context(lm: LanguageModel, config: TrainConfig) -> int:
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


def _check_count(config: TrainConfig, lm: LanguageModel, vectors: int, text: str) -> None:
    """Raise `DataError` where a text leaves fewer vectors than there are centroids: before the model runs over it."""
    centroids = 2 ** code_geometry(config.code_shape(), lm.head_dim)[1]
    if vectors < centroids:
        raise DataError(
            f"{text} gives {vectors} calibration vectors (a fifth is held out), which cannot train {centroids} "
            f"centroids; {config.remedy(enough_text=False)}"
        )


class _Rows(Sequence[Tensor]):
    """Layers (Hkv, N, D) cut down to some of their vectors when asked for: never is a side copied as a whole."""

    def __init__(self, layers: Sequence[Tensor], rows: Tensor) -> None:
        self._layers, self._rows = layers, rows

    def __len__(self) -> int:
        return len(self._layers)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return _Rows(self._layers[index], self._rows)
        return self._layers[index][:, self._rows]


def train(
    lm: LanguageModel,
    config: TrainConfig,
    progress: Progress | None = None,
    calibrated: Calibrated | None = None,
) -> tuple[CodebookSet, CodebookHeader]:
    """Capture (unless `calibrated` is given), train, measure on held-out positions. Same seed, same bytes.

    Beside the model it needs the samples, (samples + held out) x 8 bytes x layers x KV heads x head_dim (SmolLM2:
    850 MB), and one layer's vectors a few times more.
    """
    report = progress or (lambda stage, done, total: None)
    num_subspaces, nbits = code_geometry(config.code_shape(), lm.head_dim)
    found = calibrated or calibrate(lm, config, progress)
    samples, held_out = found.samples, found.held_out
    weights = samples.queries if config.metric == "query" else None
    trained, errors = {}, {}
    for side, vectors, metric in (("keys", samples.keys, weights), ("values", samples.values, None)):
        shuffle = torch.randperm(vectors[0].shape[1], generator=torch.Generator().manual_seed(config.seed))
        kept, rest = shuffle[held_out:], shuffle[:held_out]
        trained[side] = train_codebooks(
            _Rows(vectors, kept),
            num_subspaces,
            nbits,
            scope=config.scope,
            iterations=config.iterations,
            seed=config.seed,
            channels=config.channels,
            weights=metric,
            progress=partial(report, f"train {side}"),
        )
        errors[side] = [relative_error(b, layer[:, rest]) for b, layer in zip(trained[side], vectors, strict=True)]
    unseen = [layer[:, rest] for layer in samples.keys]  # sides are shuffled alike
    in_metric = map(relative_error, trained["keys"], unseen, samples.queries)
    header = CodebookHeader(
        model=ModelIdentity(**lm.identity()),
        num_layers=len(lm.coded_layers),
        num_kv_heads=lm.num_kv_heads,
        head_dim=lm.head_dim,
        num_subspaces=num_subspaces,
        nbits=nbits,
        scope=config.scope,
        channels=config.channels,
        metric=config.metric,
        calibration=found.text,
        samples=samples.keys[0].shape[1] - held_out,
        iterations=config.iterations,
        seed=config.seed,
        errors=tuple(zip(errors["keys"], errors["values"], strict=True)),
        query_errors=tuple(in_metric),
        versions={name: version(name) for name in ("pqkv", "torch", "numba", "transformers")},
    )
    return CodebookSet(trained["keys"], trained["values"]), header


def check_codebooks(header: CodebookHeader, lm: LanguageModel, path: str) -> None:
    """Raise `CodebookError` unless the codebooks were trained for this very model."""
    shape = (header.num_layers, header.num_kv_heads, header.head_dim)
    actual = (len(lm.coded_layers), lm.num_kv_heads, lm.head_dim)
    if shape != actual:
        raise CodebookError(
            f"{path}: codebooks for {header.model.name} (layers, KV heads, head_dim = {shape}), "
            f"but {lm.name} has {actual}; train codebooks for this model"
        )
    if (header.model.config, header.model.weights) != (lm.config_digest, lm.fingerprint):
        raise CodebookError(
            f"{path}: codebooks were trained for {header.model.name} with other weights or settings than {lm.name}; "
            "train codebooks for this model"
        )
