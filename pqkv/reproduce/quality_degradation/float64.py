"""Part d: how far the exact cache in float32 is from the same one in float64: what of an error is rounding."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from pqkv.lm import LanguageModel, attach, load_model
from pqkv.lm.tokens import token_form
from pqkv.quality.cell_run import Shared
from pqkv.quality.logits import logit_errors
from pqkv.quality.modes import exact_states
from pqkv.record import Record
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.quality_degradation.settings import Settings
from pqkv.reproduce.quality_degradation.verdicts import LOGIT_TOLERANCE
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, newest, table_rows
from pqkv.text import windows

FLOAT64 = "degradation-float64"


def part_d(settings: Settings, request: Request) -> Iterator[Record]:
    """A cell for each context."""
    lm = load_model(settings.model)
    form = token_form(lm, "auto", parse_special=False)
    corpus, stream = Shared(lm).stream(settings.data, None, form)
    for number, context in enumerate(settings.contexts):
        request.report(f"d: {context} tokens in float64", number, len(settings.contexts))
        tokens = windows(stream, context + 1, settings.float64_windows).tokens[:, :context]
        config = {"part": "d", "model": lm.name, "model_weights": lm.fingerprint, "data": corpus.name,
                  "data_sha256": corpus.sha256, "context": context, "windows": len(tokens),
                  "decode_tokens": settings.decode_tokens, "seed": settings.seed}  # fmt: skip
        yield part_cell(FLOAT64, config, partial(_apart, lm, tokens, settings.decode_tokens), request)


def _apart(lm: LanguageModel, tokens: np.ndarray, newest_tokens: int) -> dict[str, Any]:
    """Of the newest tokens of each window (n, T)."""
    attach(lm.model)
    wide = replace(lm, model=copy.deepcopy(lm.model).double())  # the same weights; it is gone with this call
    errors = []
    for row in tokens:
        ids = torch.from_numpy(row[None])
        exact, found = (exact_states(one, ids, newest_tokens)[0] for one in (wide, lm))
        errors.append(float(logit_errors(exact, found, lm.head, exact_head=wide.head).max()))
    return {"tables": {"float64": [{"error": max(errors)}]}, "samples": {"logit_error": errors}}


def float64_rows(records: Sequence[Record]) -> list[Row]:
    """Errors of logits in float32 by model and context."""
    kept = ("model", "context", "windows", "error")
    rows = [{key: row[key] for key in kept} for row in table_rows(records, FLOAT64, "float64")]
    return newest(rows, "model", "context", most="windows")


def finding_d(records: Sequence[Record]) -> list[Row]:
    """Whether what counts as damage lies above what rounding does."""
    result, rows = [], float64_rows(records)
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        worst = max(row["error"] for row in own)
        said = (
            f"float32 is off float64 by {worst:.1e} of a position's largest logit at most, at "
            f"{', '.join(str(row['context']) for row in own)} tokens; damage is an error over {LOGIT_TOLERANCE:.0e}"
        )
        # ten times: a backend rounds in an order of its own, and adds its own error to that of the reference
        result.append(claim("an error that counts as damage is no rounding", "ours", said,
                            10 * worst <= LOGIT_TOLERANCE, model))  # fmt: skip
    return result
