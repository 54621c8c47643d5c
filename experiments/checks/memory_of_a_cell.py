"""Memory of one job beside the weights of a model with a large vocabulary: estimated, and as the process peaked.

.venv/bin/python experiments/checks/memory_of_a_cell.py [CONTEXT] [MODE] [LAYERS] [VOCABULARY] [-o results/checks]

MODE is that of a cell, `by-layer`, or a noise floor: `"bfloat16 arithmetic"`, `"float16 cache"` ... The model has the
shapes of Gemma 3 270M, random weights and the tokenizer of the bundled model. Its codebooks are trained in a process of
their own, so that the peak is the job's.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from recording import keep
from transformers import AutoConfig, AutoModelForCausalLM

from pqkv.codec.codebook_file import save_codebooks
from pqkv.config import EvalConfig, TrainConfig
from pqkv.lm import LanguageModel, load_model
from pqkv.lm.load import describe
from pqkv.lm.train import train
from pqkv.quality.cell_run import Shared
from pqkv.quality.cells import named_codings
from pqkv.quality.jobs import ground, jobs
from pqkv.quality.memory import peak_resident

TERMS = ("copies", "exact_states", "exact_forward", "coded_run", "comparison", "libraries")
GIB = 1 << 30


def model(layers: int, vocabulary: int) -> LanguageModel:
    config = AutoConfig.for_model(
        "gemma3_text", vocab_size=vocabulary, hidden_size=640, intermediate_size=2048, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=1, head_dim=256, sliding_window=512, max_position_embeddings=32768,
        query_pre_attn_scalar=256,
    )  # fmt: skip
    torch.manual_seed(0)
    return describe("gemma3-shaped", AutoModelForCausalLM.from_config(config).eval(), load_model().tokenizer)


def resident() -> int:
    """Bytes of this process now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


def measure(context: int, mode: str, lm: LanguageModel, books: Path) -> list[dict[str, Any]]:
    layers, floor = mode == "by-layer", mode.endswith(("arithmetic", "cache"))
    wanted = EvalConfig.parse({
        "codebooks": (str(books),), "context": (context,), "windows": 1, "by_layer": layers, "noise_floor": floor,
        "mode": ("exact-schedule" if layers or floor else mode,), "metrics": ("perplexity", "agreement", "kld"),
    })  # fmt: skip
    shared, named = Shared(lm), named_codings(wanted)
    listed = jobs(wanted, shared, ground(wanted, shared, named), named)
    (job,) = [
        job for job in listed
        if (job.config.get("floor") == mode if floor else (job.kind == "eval-by-layer") == layers)
    ]  # fmt: skip
    before, clock = resident(), time.perf_counter()
    outcome = job.measure(lambda done, total: None)
    seconds, peak = time.perf_counter() - clock, peak_resident() or 0
    expected = outcome["tables"]["memory_plan"][0]
    weights = sum(weight.numel() * weight.element_size() for weight in lm.model.parameters())
    gib = {
        "weights": weights, "before": before, "peak": peak, "more": peak - before,
        "estimated": expected["estimated_peak"], **{name: expected[name] for name in TERMS},
    }  # fmt: skip
    told = {f"{name}_gib": round(size / GIB, 3) for name, size in gib.items()}
    return [{"coded_layers": len(lm.coded_layers), "seconds": round(seconds), **told}]


def books_of(layers: int, vocabulary: int, file: Path) -> None:
    lm = model(layers, vocabulary)
    training = TrainConfig(num_subspaces=128, nbits=8, calibration_tokens=512, context=256, samples=512, iterations=1)
    save_codebooks(file, *train(lm, training))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("context", type=int, nargs="?", default=8192)
    parser.add_argument("mode", nargs="?", default="exact-schedule")
    parser.add_argument("layers", type=int, nargs="?", default=18)
    parser.add_argument("vocabulary", type=int, nargs="?", default=262144)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--books", type=Path, help="train codebooks into this file, and nothing else")
    given = parser.parse_args()
    if given.books:
        books_of(given.layers, given.vocabulary, given.books)
        sys.exit()
    asked = {name: getattr(given, name) for name in ("context", "mode", "layers", "vocabulary")}
    with tempfile.TemporaryDirectory() as folder:
        books = Path(folder) / "books.safetensors"
        subprocess.run([sys.executable, __file__, *map(str, asked.values()), "--books", str(books)], check=True)
        keep(
            "memory_of_a_cell", {"model": "gemma3-shaped", **asked}, given.output,
            lambda: measure(given.context, given.mode, model(given.layers, given.vocabulary), books),
        )  # fmt: skip
