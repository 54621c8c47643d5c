"""The grid of an evaluation: one flat, complete description per cell, whose digest names its record."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqkv.codec import CodebookSet
from pqkv.codec.catalog import CodecSpec
from pqkv.codec.codebook_file import Calibration, CodebookHeader, load_codebooks
from pqkv.codec.hub import find_codebooks
from pqkv.codec.interface import Codec
from pqkv.codec.sizes import nominal_bits
from pqkv.config import SINK_TOKENS, STEPWISE, EvalConfig, Mode, TrainConfig
from pqkv.errors import ConfigError
from pqkv.lm import LanguageModel
from pqkv.lm.calibrate import Progress
from pqkv.lm.codecs import LearntCodec, learnt_codecs
from pqkv.lm.defaults import default_codebooks, kept_codebooks
from pqkv.lm.tokens import TokenForm, recorded_form
from pqkv.lm.train import recipe_options
from pqkv.quality.recall_words import pieces_fit
from pqkv.schedule import coded_share, first_coded
from pqkv.text import Corpus


@dataclass(frozen=True, slots=True, eq=False)
class Coding:
    """What a cell codes with: codebooks and where they came from, or a codec; with 0 `bits` nothing, the exact cache;
    in a plan that trains nothing, bits without codebooks.
    """

    bits: float
    books: CodebookSet | None = None
    header: CodebookHeader | None = None
    digest: str | None = None
    learnt: LearntCodec | None = None

    @property
    def codes(self) -> CodebookSet | Codec | None:
        """What makes codes; None for the exact cache."""
        return self.books if self.learnt is None else self.learnt.codec

    @property
    def calibration(self) -> Calibration | None:
        """The text it was learnt from."""
        return self.header.calibration if self.header else self.learnt.calibration if self.learnt else None

    @property
    def label(self) -> str:
        """For progress and tables."""
        if self.learnt is not None:
            return str(self.learnt.spec)
        return f"{self.bits:.3g} bits" if self.bits else "exact"


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One context, one mode, one coding; in mode all-coded the first `coded_sinks` tokens stay exact."""

    coding: Coding
    mode: Mode
    context: int
    coded_sinks: int = 0

    @property
    def label(self) -> str:
        """For progress."""
        sinks = f" but {self.coded_sinks}" if self.coded_sinks else ""
        return f"{self.coding.label}, {self.mode}{sinks}, {self.context} tokens"


def named_codings(config: EvalConfig) -> list[Coding]:
    """The codebooks the configuration names, files, folders or hub ids, read and checked; for which model is not asked
    yet.
    """
    return [_coding(*load_codebooks(path), path) for path in map(find_codebooks, config.codebooks)]


def default_codings(config: EvalConfig, lm: LanguageModel, progress: Progress | None) -> list[Coding]:
    """The default codebooks of each of `bits`, trained where they are not there yet; 0 is the exact cache."""
    found = []
    for bits in config.bits:
        if bits == 0:
            found.append(Coding(bits=0))
            continue
        found.append(_coding(*default_codebooks(lm, _training(config, bits), progress)))
    return found


def kept_codings(config: EvalConfig, lm: LanguageModel) -> list[Coding]:
    """Those of `default_codings` as far as they are trained: of others there are the bits alone."""
    kept = [(bits, kept_codebooks(lm, _training(config, bits)) if bits else None) for bits in config.bits]
    return [Coding(bits=bits) if found is None else _coding(*found) for bits, found in kept]


def codec_codings(config: EvalConfig, lm: LanguageModel, progress: Progress | None) -> list[Coding]:
    """The codecs of the configuration, learnt where they are not kept. Their `bits` are those of vectors of a normal
    distribution: what the evaluated ones take is measured.
    """
    calibration = config.calibration.model_copy(update={"bos": config.bos, "parse_special": config.parse_special})
    found = learnt_codecs(lm, [CodecSpec.parse(text) for text in config.codec], calibration, progress)
    shape = len(lm.coded_layers), lm.num_kv_heads, lm.head_dim
    return [Coding(round(nominal_bits(one.codec, *shape), 4), digest=one.digest, learnt=one) for one in found]


def cells(config: EvalConfig, found: list[Coding]) -> list[Cell]:
    """The grid, contexts outermost; modes that make no sense for the exact cache are left out."""
    return [
        Cell(coding, mode, context, sinks)
        for context in config.context
        for coding in found
        for mode in config.mode
        for sinks in (config.coded_sinks if mode == "all-coded" else (0,))
        if coding.bits or config.shows_exact(mode)
    ]


def describe(
    cell: Cell,
    config: EvalConfig,
    lm: LanguageModel,
    text: tuple[Corpus, TokenForm],
    windows: int,
    backend: str,
) -> dict[str, Any]:
    """Everything the figures of a cell depend on, flat; what they do not depend on is left out or None.

    A key that came later stands here only where the figures differ from those of a record without it (see
    `pqkv.record.SCHEMA_VERSION`): those of `recorded_form`, and `recall_pieces` where a question encoded with its
    answer is not the same as both apart; in a chat it never was encoded otherwise.
    """
    corpus, form = text
    stepwise = cell.mode in STEPWISE
    header, learnt_from = cell.coding.header, cell.coding.calibration
    cache = config.cache().model_dump(mode="json")
    if not config.paged:
        cache |= {"key_layout": "row", "value_layout": "row", "max_pages": None}
    del cache["fallback"]
    cache["backend"] = backend if stepwise else None
    if cell.mode == "decode":
        cache["decode_tokens"] = config.decode_tokens
    later = recorded_form(lm, corpus, form)
    if cell.coding.learnt is not None:
        later["codec"] = cell.coding.learnt.spec.config()
    if header is not None and header.recipe != "product":
        later["recipe"] = header.recipe
        layers = {side: list(own.layer_bits) for side, own in (("keys", header.keys), ("values", header.values)) if own}
        if any(layers.values()):
            later["layer_bits"] = layers
        later |= _made_of(header)
    if cell.coded_sinks:
        later["coded_sinks"] = cell.coded_sinks
    if config.score_after:
        later["score_after"] = config.score_after
    if "recall" in config.metrics and config.recall_form != "code":
        later["recall_form"] = config.recall_form
    elif "recall" in config.metrics and form.chat is None and not pieces_fit(lm):
        later["recall_pieces"] = "together"
    return {
        "model": lm.name,
        "model_weights": lm.fingerprint,
        "dtype": config.dtype,
        "device": config.device,
        "data": corpus.name,
        "split": corpus.split,
        "data_sha256": corpus.sha256,
        "bits": cell.coding.bits,
        "num_subspaces": header.num_subspaces if header else None,
        "nbits": header.nbits if header else None,
        "scope": header.scope if header else None,
        "channels": header.channels if header else None,
        "metric": header.metric if header else None,
        "codebooks": cell.coding.digest,  # or of the codec, with what it learnt from
        "calibration": f"{learnt_from.name}/{learnt_from.split}" if learnt_from else None,
        "mode": cell.mode,
        "context": cell.context,
        "chunk_size": config.chunk_size if cell.mode == "chunk" else None,
        "windows": windows,
        "topk": list(config.topk),
        "metrics": list(config.metrics),
        "control": config.control,
        "seed": config.seed,
        "allow_contaminated": config.allow_contaminated,
        **cache,
        **later,
    }


def _made_of(header: CodebookHeader) -> dict[str, Any]:
    """The parts of composed codes that are not those of recipe pqkv."""
    usual, own = recipe_options(TrainConfig()), {"keys": header.keys, "values": header.values}
    sized = {"bits", "num_subspaces", "nbits", "layer_bits", "scope", "iterations"}
    parts = {side: options.model_dump(mode="json", exclude=sized) for side, options in own.items() if options}
    others = {side: options.model_dump(mode="json", exclude=sized) for side, options in usual.items()}
    return {} if parts == others else {"made_of": parts}


def check_something_coded(config: EvalConfig) -> None:
    """Raise `ConfigError` where codes are asked for and no cell of the grid has any: its figures would be those of the
    exact cache.
    """
    cache = {"page_size": config.page_size, "residual": config.residual, "sink_tokens": config.sink_tokens}
    steps = {"chunk_size": config.chunk_size, "decode_tokens": config.decode_tokens}
    shares = [coded_share(mode, context, **cache, **steps) for mode in config.mode for context in config.context]
    if any(shares) or (not config.codebooks and not config.codec and not any(config.bits)):
        return
    first = first_coded(residual=config.residual, sink_tokens=config.sink_tokens)
    raise ConfigError(
        f"context {max(config.context)} codes nothing in mode {', '.join(config.mode)}: the first {config.sink_tokens} "
        f"and the newest {config.residual} tokens stay exact, so coding starts at {first}; raise --context, lower "
        "--residual and --page-size, or take --mode all-coded"
    )


def _training(config: EvalConfig, bits: float) -> TrainConfig:
    """How the default codebooks of `bits` are trained: from no first tokens that all cells keep exact."""
    exact = [max(config.coded_sinks) if mode == "all-coded" else config.sink_tokens for mode in config.mode]
    return TrainConfig.parse(
        {
            "model": config.model,
            "dtype": config.dtype,
            "device": config.device,
            "device_map": config.device_map,
            "bits": bits,
            "recipe": config.recipe,
            "leave_out": min(SINK_TOKENS, *exact) if config.recipe == "pqkv" else None,
            # of a recipe that has a scope of its own
            **({} if config.recipe == "million" else {"scope": config.scope}),
            "bos": config.bos,
            "parse_special": config.parse_special,
        }
    )


def _coding(books: CodebookSet, header: CodebookHeader, path: Path) -> Coding:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return Coding(books.code_bits, books, header, digest)
