"""Whether `pqkv compare` tells a planted loss of 2% in KLD, and how often it tells one where only chance is at work.

python experiments/checks/compare_tells.py PART [-o results/checks] [--work FOLDER]

PART is compare: the bundled model, centroids moved at random until KLD of 256 windows of 512 tokens is about 2% more,
the same codebooks on 32 windows, and a second run of one commit on these; it goes on from FOLDER. Or chance: windows of
records of quality-lab, two ways of coding with nearly the same KLD; a coin for each window says which is before.
Nothing is worse, and how often the interval leaves 0 out is counted, beside percentiles of windows drawn with
replacement and Student's interval of the mean log ratio, and how far each reaches.
"""

import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sweeping import PQKV, Rows, run_part

from pqkv.codec.codebook_file import load_codebooks, save_codebooks
from pqkv.config import EvalConfig, TrainConfig
from pqkv.lm import load_model
from pqkv.lm.train import train
from pqkv.quality.cell_run import Shared
from pqkv.quality.evaluate import evaluate
from pqkv.record import Metric, Record, RecordStore, load_records
from pqkv.sweep.change import change
from pqkv.sweep.student import t_quantile

WINDOWS, FEW, PLANTED, NEAR = 256, 32, 0.02, 0.003
RECORDS, CONTEXT = Path(__file__).parents[2] / "results/quality-lab", 1024
DRAWS, RESAMPLES = 60, 2000  # of each two ways of coding; of windows for percentiles


def planted(work: Path) -> Rows:
    shared = Shared(load_model())

    def run(books: Path, folder: str, windows: int = WINDOWS) -> Record:
        wanted = EvalConfig(
            codebooks=(str(books),), context=(512,), windows=windows, mode=("all-coded",), metrics=("kld",)
        )
        (record,) = evaluate(wanted, RecordStore(work / folder), shared=shared)
        return record

    plain, moved = work / "plain.safetensors", work / "moved.safetensors"
    settings = TrainConfig(recipe="product", bits=4, iterations=3, samples=4096, calibration_tokens=4096)
    if not plain.exists():
        save_codebooks(plain, *train(shared.lm, settings))
    before, size, tried = run(plain, "before"), 0.013, 0
    while True:
        move(plain, moved, size)
        after, tried = run(moved, f"after-{tried}"), tried + 1
        gained = kld(after) / kld(before) - 1
        print(f"centroids moved by {size:.4f} of their spread: {gained:+.2%}", flush=True)
        if abs(gained - PLANTED) < NEAR or tried == 8:
            break
        size *= (PLANTED / max(gained, 0.002)) ** 0.75  # between a change by its size and one by its square
    run(plain, "few-before", FEW)
    run(plain, "few-again", FEW)
    run(moved, "few-after", FEW)
    return [
        told("planted", work / "before", work / f"after-{tried - 1}"),
        told("planted, fewer windows", work / "few-before", work / "few-after"),
        told("the same commit", work / "few-before", work / "few-again"),
    ]


def move(plain: Path, to: Path, size: float) -> None:
    """Codebooks whose centroids are `size` of their spread away, each in a direction of its own."""
    moved, header = load_codebooks(plain)
    for layer, sides in enumerate(zip(moved.keys, moved.values, strict=True)):
        for side, book in enumerate(sides):
            draw = torch.Generator().manual_seed(2 * layer + side)
            book.centroids.add_(size * book.centroids.std() * torch.randn(book.centroids.shape, generator=draw))
    save_codebooks(to, moved, header)


def told(name: str, first: Path, second: Path) -> dict[str, Any]:
    """What the command says and how it ends."""
    words = ["compare", str(first), str(second), "--metrics", "kld_mean", "--format", "json", "--fail-above", "0.5%"]
    done = subprocess.run([*PQKV, *words], check=False, capture_output=True, text=True)
    (found,) = json.loads(done.stdout)
    return {"against": name, "exit_code": done.returncode, "windows": found["count"], "change": found["value"],
            "low": found["low"], "high": found["high"], "over": found["how"]}  # fmt: skip


def chance(_: Path) -> Rows:
    every = [r for r in load_records(RECORDS) if r.kind == "eval" and r.config["context"] == CONTEXT]
    every = sorted((r for r in every if len(r.samples.get("kld_mean", ())) == FEW), key=kld)
    pairs = [[np.array(r.samples["kld_mean"]) / kld(r) for r in two] for two in pairwise(every)]
    return [by_chance(pairs, windows, comparisons) for windows in (8, 16, 32) for comparisons in (1, 20)]


def by_chance(pairs: list[list[np.ndarray]], windows: int, comparisons: int) -> dict[str, Any]:
    """How often 0 is left out where it is the truth, and half the width of intervals, of three kinds of them."""
    random, tail = np.random.default_rng(windows), 0.05 / comparisons / 2
    left_out, widths, count = dict[str, int](), dict[str, float](), DRAWS * len(pairs)
    for first, second in pairs * DRAWS:
        draw, coin = random.integers(0, len(first), windows), random.random(windows) < 0.5
        a, b = np.where(coin, first[draw], second[draw]), np.where(coin, second[draw], first[draw])
        for name, low, high in intervals(a, b, tail, comparisons, random):
            left_out[name] = left_out.get(name, 0) + int(low > 0 or high < 0)
            widths[name] = widths.get(name, 0.0) + float(high - low) / 2
    return {
        "windows": windows, "comparisons": comparisons, "pairs": len(pairs), "draws": count,
        **{f"{name}_tells": told / count for name, told in left_out.items()},
        **{f"{name}_reach": width / count for name, width in widths.items()},
    }  # fmt: skip


def intervals(
    a: np.ndarray, b: np.ndarray, tail: float, comparisons: int, random: np.random.Generator
) -> Iterator[tuple[str, float, float]]:
    """Of pqkv, of percentiles, and of the mean log ratio, which is another question's answer."""
    found = change("kld_mean", [as_record(a)], [as_record(b)], comparisons=comparisons)
    yield "compare", found.low, found.high
    draw = random.integers(0, len(a), (RESAMPLES, len(a)))
    low, high = np.quantile(b[draw].mean(1) / a[draw].mean(1) - 1, [tail, 1 - tail])
    yield "percentiles", low, high
    logs = np.log(b / a)
    reach = t_quantile(tail, len(a) - 1) * logs.std(ddof=1) / len(a) ** 0.5
    yield "log_ratio", np.expm1(logs.mean() - reach), np.expm1(logs.mean() + reach)


def as_record(windows: np.ndarray) -> Record:
    """A record of nothing but KLD by window."""
    return Record.model_construct(
        config={}, samples={"kld_mean": windows.tolist()}, metrics={"kld_mean": Metric(value=float(windows.mean()))}
    )


def kld(record: Record) -> float:
    return record.metrics["kld_mean"].value


run_part(__doc__, {"compare": planted, "chance": chance})
