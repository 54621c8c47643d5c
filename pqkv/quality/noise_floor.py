"""The noise floor: exact caches that differ by rounding alone. Under it nothing can be told of a way of coding.

Two kinds, each on the windows of the other cells of its context. *Arithmetic*: the model run in bfloat16 (float16)
against float32, with weights rounded to the narrow type on both sides, so that only the arithmetic differs. *Cache*:
keys and values alone rounded to it, everything else as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pqkv.config import EvalConfig
from pqkv.errors import ModelError
from pqkv.lm import LanguageModel, attach
from pqkv.lm.tokens import TokenForm, recorded_form
from pqkv.quality.batches import FORWARD_TOKENS
from pqkv.quality.exact_states import ExactStates
from pqkv.quality.inputs import model_inputs
from pqkv.quality.measures import PositionMeasures, compare
from pqkv.quality.rounded import RoundedCache
from pqkv.quality.summary import by_position, summarize
from pqkv.record import Metric
from pqkv.text import Corpus

MODE = "noise-floor"
_NARROW_BITS = 16.0


@dataclass(frozen=True, slots=True)
class Floor:
    """What differs between the two exact caches, and the type it is rounded to."""

    kind: Literal["arithmetic", "cache"]
    dtype: Literal["bfloat16", "float16"]

    @property
    def label(self) -> str:
        """For tables and plots: `bfloat16 arithmetic`."""
        return f"{self.dtype} {self.kind}"


def floors(lm: LanguageModel) -> list[Floor]:
    """The floors of a model, those left out whose rounding would change nothing."""
    own = str(lm.dtype).removeprefix("torch.")
    kinds: tuple[Literal["arithmetic", "cache"], ...] = ("arithmetic", "cache")
    dtypes: tuple[Literal["bfloat16", "float16"], ...] = ("bfloat16", "float16")
    return [Floor(kind, dtype) for kind in kinds for dtype in dtypes if (kind, dtype) != ("cache", own)]


def describe_floor(
    floor: Floor, context: int, config: EvalConfig, lm: LanguageModel, text: tuple[Corpus, TokenForm], windows: int
) -> dict[str, Any]:
    """Everything the figures of a floor depend on."""
    corpus, form = text
    later = {"score_after": config.score_after} if config.score_after else {}
    return {
        "model": lm.name, "model_weights": lm.fingerprint, "dtype": config.dtype, "device": config.device,
        "data": corpus.name, "split": corpus.split, "data_sha256": corpus.sha256, "bits": _NARROW_BITS,
        "mode": MODE, "floor": floor.label, "context": context, "windows": windows, "topk": list(config.topk),
        "metrics": [name for name in config.metrics if name in ("perplexity", "agreement", "kld")],
        "seed": config.seed, **recorded_form(lm, corpus, form), **later,
    }  # fmt: skip


def measure_floor(
    floor: Floor,
    windows: np.ndarray,
    config: EvalConfig,
    exact: ExactStates,
    form: TokenForm,
    step: Callable[[int, int], None],
) -> dict[str, Any]:
    """What a record holds of a floor on windows (n, T): the measures of a cell, the coded cache being the rounded one.

    The two models of `arithmetic` are alive while it runs: one and a half times float32 weights beside the model's own.
    """
    inputs = model_inputs(windows, 0, form, config.score_after)
    found: list[PositionMeasures] = []
    together = max(1, FORWARD_TOKENS // windows.shape[1])
    with_pair = _arithmetic(exact.lm, floor) if floor.kind == "arithmetic" else _cache(exact, floor)
    for start in range(0, len(windows), together):
        rows = slice(start, start + together)
        ids = torch.from_numpy(inputs.ids[rows]).to(exact.lm.device)
        (wide, wide_head), (narrow, narrow_head) = with_pair(ids)
        if narrow.isnan().any():
            raise ModelError(f"the model overflows {floor.dtype}: {floor.label} has no figures; bfloat16 may have")
        for b, first in enumerate(inputs.first[rows]):
            targets = torch.from_numpy(inputs.targets[rows][b]).to(ids.device)
            scored = slice(first, first + len(targets))
            pair = wide[b, scored], narrow[b, scored]
            found.append(compare(*pair, targets, config.topk, wide_head, coded_head=narrow_head))
        step(min(start + together, len(windows)), len(windows))
    bits = {name: Metric(value=_NARROW_BITS, unit="bits") for name in ("code_bits", "effective_bits")}
    return {
        "metrics": bits | summarize(found, config.metrics, config.seed),
        "tables": {"by_position": by_position(found, inputs.position)},
        "samples": {"kld_mean": [float(m.kld.mean()) for m in found]},
        "notes": [*exact.lm.notes],
    }


Pair = tuple[tuple[Tensor, Any], tuple[Tensor, Any]]


def _cache(exact: ExactStates, floor: Floor) -> Callable[[Tensor], Pair]:
    lm, dtype = exact.lm, getattr(torch, floor.dtype)

    def pair(ids: Tensor) -> Pair:
        attach(lm.model)
        return (exact(ids), lm.head), (lm.states(ids, RoundedCache(lm.model.config, dtype)), lm.head)

    return pair


def _arithmetic(lm: LanguageModel, floor: Floor) -> Callable[[Tensor], Pair]:
    narrow = replace(lm, model=copy.deepcopy(lm.model).to(getattr(torch, floor.dtype)))
    wide = replace(lm, model=copy.deepcopy(narrow.model).float())  # the same weights, rounded once

    def pair(ids: Tensor) -> Pair:
        return (wide.states(ids), wide.head), (narrow.states(ids), narrow.head)

    return pair
