"""How many codes differ between decoding token by token and one forward under the exact schedule, in float32.

.venv/bin/python experiments/checks/code_ties.py [TOKENS] [BACKEND] [MODEL] [BITS,...]
"""

import importlib
import sys
from pathlib import Path

import torch
from torch import Tensor

from pqkv.codec import Codebook, CodebookSet
from pqkv.config import CacheConfig, Mode, TrainConfig
from pqkv.lm import load_model
from pqkv.lm.defaults import default_codebooks
from pqkv.quality.modes import run_coded

MODULES = ("textwrap", "argparse", "ast", "heapq", "random", "shutil")
tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 700
config = CacheConfig(backend=sys.argv[2] if len(sys.argv) > 2 else "reference")
name = sys.argv[3] if len(sys.argv) > 3 else "reference"
widths = [float(bits) for bits in (sys.argv[4] if len(sys.argv) > 4 else "4,3,2").split(",")]
torch.set_num_threads(1)  # a step of one token is too little for two
lm = load_model(name)


def recording(book: Codebook, kept: list[Tensor]) -> Codebook:
    """The codebook, putting the codes (1, Hkv, n, M) of every call into `kept`."""

    class Recording(Codebook):
        def encode(self, vectors: Tensor) -> Tensor:
            codes = book.encode(vectors)
            kept.append(codes)
            return codes

    return Recording(book.centroids, book.channels, book.weights, book.rotation)


def codes(books: CodebookSet, ids: Tensor, mode: Mode) -> list[Tensor]:
    """All codes (1, Hkv, n, M) of a run, of every layer's keys and then of every layer's values."""
    sides: list[list[Tensor]] = [[] for _ in (*books.keys, *books.values)]
    wrapped = [recording(book, kept) for book, kept in zip((*books.keys, *books.values), sides, strict=True)]
    own = CodebookSet(tuple(wrapped[: books.num_layers]), tuple(wrapped[books.num_layers :]))
    run_coded(lm, ids, own, config, mode)
    return [torch.cat(kept, 2) for kept in sides]


def beginning(module: str) -> Tensor:
    """Ids (1, tokens) of a module's source."""
    source = Path(str(importlib.import_module(module).__file__)).read_text(encoding="utf-8")
    return torch.tensor(lm.encode(source)[:tokens])[None]


print(f"{tokens} tokens of each of {', '.join(MODULES)}; backend of the single steps: {config.backend}")
for bits in widths:
    books = default_codebooks(lm, TrainConfig.parse({"model": name, "bits": bits}))[0]
    differ = total = 0
    for module in MODULES:
        ids = beginning(module)
        pairs = zip(codes(books, ids, "exact-schedule"), codes(books, ids, "token"), strict=True)
        for one_forward, stepwise in pairs:
            differ, total = differ + int((one_forward != stepwise).sum()), total + one_forward.numel()
    print(f"{bits:g} bits: {differ} of {total:,} codes differ", flush=True)
