"""Errors of codebooks on the same held-out vectors: MODEL CODEBOOKS,CODEBOOKS,... [-o results/training]

python experiments/checks/held_out_error.py smollm2 before.safetensors,after.safetensors -o results/training

Vectors are those of windows of 4,096 tokens, from position 0 on, of the standard library's test split, which none of
the codebooks saw. Errors are squared, over the squared distance to the mean vector of a head (keys in the metric of
their queries too), and means over layers; the first row is the base of the ratios.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from recording import keep

from pqkv.codec.codebook_file import load_codebooks
from pqkv.codec.training import relative_error
from pqkv.config import TrainConfig
from pqkv.lm import load_model
from pqkv.lm.calibrate import calibrate
from pqkv.lm.train import check_codebooks

SPANS = ((0, 4096), (4, 4096), (4, 1024), (1024, 4096))  # a cache keeps the first 4 exact

asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
asked.add_argument("model")
asked.add_argument("codebooks", type=lambda text: [Path(path) for path in text.split(",")])
asked.add_argument("-o", "--output", type=Path)
asked.add_argument("--windows", type=int, default=4)
given = asked.parse_args()
CONTEXT = 4096
tokens = given.windows * CONTEXT
config = TrainConfig(
    model=given.model, split="test", bits=4, context=CONTEXT, positions=CONTEXT, calibration_tokens=tokens,
    samples=tokens - 2048, leave_out=0, seed=1,
)  # fmt: skip


def measured() -> list[dict[str, Any]]:
    return list(rows())


def rows() -> Iterator[dict[str, Any]]:
    lm = load_model(given.model)
    samples = calibrate(lm, config).samples
    base: dict[str, float] = {}
    assert samples.positions is not None
    for path in given.codebooks:
        books, header = load_codebooks(path)
        check_codebooks(header, lm, str(path))
        for first, end in SPANS:
            rest = ((samples.positions >= first) & (samples.positions < end)).nonzero()[:, 0]
            places = samples.positions[rest]
            sides = {
                "key_query_error": zip(books.keys, samples.keys, samples.queries, strict=True),
                "value_error": zip(books.values, samples.values, [None] * len(books.values), strict=True),
            }
            row: dict[str, Any] = {
                "codebooks": path.stem, "init": header.init, "first": first, "end": end, "vectors": len(rest)
            }  # fmt: skip
            for name, side in sides.items():
                error = mean(relative_error(book, layer[:, rest], weight, places) for book, layer, weight in side)
                row[name] = error
                row[f"{name}_ratio"] = error / base.setdefault(f"{name} {first} {end}", error)
            yield row


keep("held_out_error", {"model": given.model, "windows": given.windows}, given.output, measured)
