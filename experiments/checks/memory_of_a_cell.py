"""Memory of one cell beside the weights of a model with a large vocabulary: estimated, and as the process peaked.

.venv/bin/python experiments/checks/memory_of_a_cell.py [CONTEXT] [MODE] [LAYERS] [VOCABULARY]

The model has the shapes of Gemma 3 270M, random weights and the tokenizer of the bundled model.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pqkv.codec.codebook_file import save_codebooks
from pqkv.config import EvalConfig, TrainConfig
from pqkv.lm import load_model
from pqkv.lm.load import describe
from pqkv.lm.train import train
from pqkv.quality.cell_run import Shared
from pqkv.quality.evaluate import evaluate

_TERMS = ("exact_states", "exact_forward", "coded_run", "comparison", "libraries")
words = [*sys.argv[1:], *("8192", "exact-schedule", "18", "262144")[len(sys.argv) - 1 :]]
context, mode, layers, vocabulary = int(words[0]), words[1], int(words[2]), int(words[3])


def resident() -> int:
    """Bytes of this process now."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()


config = AutoConfig.for_model(
    "gemma3_text", vocab_size=vocabulary, hidden_size=640, intermediate_size=2048, num_hidden_layers=layers,
    num_attention_heads=4, num_key_value_heads=1, head_dim=256, sliding_window=512, max_position_embeddings=32768,
    query_pre_attn_scalar=256,
)  # fmt: skip
torch.manual_seed(0)
lm = describe("gemma3-shaped", AutoModelForCausalLM.from_config(config).eval(), load_model().tokenizer)
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "books.safetensors"
    training = TrainConfig(num_subspaces=128, nbits=8, calibration_tokens=512, context=256, samples=512, iterations=1)
    save_codebooks(path, *train(lm, training))
    before, clock = resident(), time.perf_counter()
    wanted = EvalConfig.parse({
        "codebooks": (str(path),), "context": (context,), "mode": (mode,), "windows": 1,
        "metrics": ("perplexity", "agreement", "kld"),
    })  # fmt: skip
    (record,) = evaluate(wanted, shared=Shared(lm))
seconds = time.perf_counter() - clock
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
if record.error:
    raise SystemExit(record.error)
expected = record.tables["memory_plan"][0]
terms = ", ".join(f"{name} {size / 2**20:.0f}" for name, size in expected.items() if name in _TERMS)
weights = sum(weight.numel() * weight.element_size() for weight in lm.model.parameters())
print(f"{context} tokens, {vocabulary} words, {layers} layers ({len(lm.coded_layers)} coded), {mode}")
print(f"weights {weights / 2**30:.2f} GiB; resident before the cell {before / 2**30:.2f} GiB, at its peak "
      f"{peak / 2**30:.2f} GiB: {(peak - before) / 2**30:.2f} GiB more; {seconds:.0f} s")  # fmt: skip
print(f"estimated {expected['estimated_peak'] / 2**30:.2f} GiB (MiB: {terms}): "
      f"{expected['estimated_peak'] / (peak - before):.2f} of it")  # fmt: skip
