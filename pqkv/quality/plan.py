"""What an evaluation would run: its cells, the memory each would take, and which have a record; nothing is run."""

from __future__ import annotations

from dataclasses import dataclass

from pqkv.config import EvalConfig, digest_of
from pqkv.errors import ConfigError
from pqkv.kernels import choose_backend
from pqkv.lm import LanguageModel
from pqkv.lm.positions import positions_refusal
from pqkv.lm.tokens import token_form, token_stream
from pqkv.quality.cells import Cell, cells, describe, kept_codings, named_codings
from pqkv.quality.memory import Estimate, estimate
from pqkv.record import RecordStore
from pqkv.text import load_corpus, windows


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell of the grid. `recorded` is None where no store was asked, `trained` False where default codebooks would be
    trained first: such a cell has no record yet.
    """

    cell: Cell
    windows: int
    estimate: Estimate
    recorded: bool | None
    trained: bool


def plan(config: EvalConfig, lm: LanguageModel, store: RecordStore | None = None) -> list[PlannedCell]:
    """The cells of `config` in the order they would run. Texts are read and counted; no codebook is trained.

    Raises `ConfigError` for a context the model has no positions for, and what reading texts and codebooks raises.
    """
    if refusal := positions_refusal(lm, max(config.context)):
        raise ConfigError(refusal)
    backend = choose_backend(config.backend, lm.device, lm.dtype, fallback=config.fallback)
    form = token_form(lm, config.bos, parse_special=config.parse_special)
    corpus = load_corpus(config.data, config.split, default="test")
    stream = token_stream(lm, corpus, form)
    planned = []
    for cell in cells(config, named_codings(config) or kept_codings(config, lm)):
        count = len(windows(stream, cell.context + (cell.mode == "decode"), config.windows).tokens)
        trained = cell.coding.books is not None or not cell.coding.bits
        known = None if store is None else False
        if store is not None and trained:
            described = describe(cell, config, lm, (corpus, form), count, backend.name)
            known = store.find(digest_of(described)) is not None
        planned.append(PlannedCell(cell, count, estimate(lm, config, cell, count), known, trained))
    return planned
