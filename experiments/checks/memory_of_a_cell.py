"""Memory of one job beside the weights of a model with a large vocabulary: estimated, and as the process peaked.

.venv/bin/python experiments/checks/memory_of_a_cell.py [CONTEXT] [MODE] [LAYERS] [VOCABULARY]

MODE is that of a cell, `by-layer`, or a noise floor: `"bfloat16 arithmetic"`, `"float16 cache"` ... The model has the
shapes of Gemma 3 270M, random weights and the tokenizer of the bundled model. Its codebooks are trained in a process of
their own, so that the peak is the job's.
"""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
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

DEFAULTS = ("8192", "exact-schedule", "18", "262144")
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


def measure(context: int, mode: str, lm: LanguageModel, books: Path) -> None:
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
    print(f"{context} tokens, {lm.vocab_size} words, {lm.num_layers} layers ({len(lm.coded_layers)} coded), {mode}")
    print(f"weights {weights / GIB:.2f} GiB; resident before the cell {before / GIB:.2f} GiB, at its peak "
          f"{peak / GIB:.2f} GiB: {(peak - before) / GIB:.2f} GiB more; {seconds:.0f} s")  # fmt: skip
    print(f"estimated {expected['estimated_peak'] / GIB:.2f} GiB, {expected['estimated_peak'] / (peak - before):.2f} "
          f"of it (MiB: {', '.join(f'{name} {expected[name] / 2**20:.0f}' for name in TERMS)})")  # fmt: skip


words = sys.argv[1:]
if words[:1] == ["books"]:
    lm = model(int(words[2]), int(words[3]))
    training = TrainConfig(num_subspaces=128, nbits=8, calibration_tokens=512, context=256, samples=512, iterations=1)
    save_codebooks(Path(words[1]), *train(lm, training))
else:
    context, mode, layers, vocabulary = [*words, *DEFAULTS[len(words) :]]
    with tempfile.TemporaryDirectory() as folder:
        books = Path(folder) / "books.safetensors"
        subprocess.run([sys.executable, __file__, "books", str(books), layers, vocabulary], check=True)
        measure(int(context), mode, model(int(layers), int(vocabulary)), books)
