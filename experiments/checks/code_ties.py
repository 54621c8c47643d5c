"""How many codes differ between decoding token by token and one forward under the exact schedule, in float32.

.venv/bin/python experiments/checks/code_ties.py [TOKENS] [BACKEND] [MODEL] [BITS,...] [-o results/checks]
"""

import argparse
import importlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from recording import keep
from torch import Tensor

from pqkv.codec import Codebook, CodebookSet
from pqkv.codec.codebook import Coded
from pqkv.config import CacheConfig, Mode, TrainConfig
from pqkv.lm import LanguageModel, load_model
from pqkv.lm.defaults import default_codebooks
from pqkv.quality.modes import run_coded

MODULES = ("textwrap", "argparse", "ast", "heapq", "random", "shutil")


def recording(book: Codebook, kept: list[Tensor]) -> Codebook:
    """The codebook, putting the codes (1, Hkv, n, M) of every call into `kept`; so does what is made of it without its
    turn, where a layer has turned already.
    """

    class Recording(Codebook):
        def code(self, vectors: Tensor, positions: Tensor | None = None) -> Coded:
            coded = super().code(vectors, positions)
            kept.append(coded.codes)
            return coded

    return Recording(**{part.name: getattr(book, part.name) for part in fields(book) if part.init})


def codes(lm: LanguageModel, books: CodebookSet, ids: Tensor, mode: Mode, config: CacheConfig) -> list[Tensor]:
    """All codes (1, Hkv, n, M) of a run, of every layer's keys and then of every layer's values."""
    sides: list[list[Tensor]] = [[] for _ in (*books.keys, *books.values)]
    wrapped = [recording(book, kept) for book, kept in zip((*books.keys, *books.values), sides, strict=True)]
    own = CodebookSet(tuple(wrapped[: books.num_layers]), tuple(wrapped[books.num_layers :]))
    run_coded(lm, ids, own, config, mode)
    return [torch.cat(kept, 2) for kept in sides]


def measure(tokens: int, backend: str, model: str, widths: list[float]) -> list[dict[str, Any]]:
    lm, config, rows = load_model(model), CacheConfig(backend=backend), []
    for bits in widths:
        training = TrainConfig.parse({"model": model, "bits": bits})
        books = default_codebooks(lm, training)[0]
        differ = total = 0
        for module in MODULES:
            source = Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")
            ids = torch.tensor(lm.encode(source)[:tokens])[None]
            runs = (codes(lm, books, ids, mode, config) for mode in ("exact-schedule", "token"))
            for one_forward, stepwise in zip(*runs, strict=True):
                differ, total = differ + int((one_forward != stepwise).sum()), total + one_forward.numel()
        counted = {"texts": len(MODULES), "differ": differ, "codes": total}
        rows.append({"bits": bits, "recipe": training.recipe, **counted})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokens", type=int, nargs="?", default=700)
    parser.add_argument("backend", nargs="?", default="reference")
    parser.add_argument("model", nargs="?", default="reference")
    parser.add_argument("bits", nargs="?", default="4,3,2")
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    asked = {"model": given.model, "tokens": given.tokens, "backend": given.backend}
    torch.set_num_threads(1)  # a step of one token is too little for two
    every = [float(bits) for bits in given.bits.split(",")]
    keep("code_ties", {**asked, "bits": given.bits}, given.output, lambda: measure(**asked, widths=every))
