"""Perplexity by transformers alone, to hold `pqkv eval` against.

.venv/bin/python experiments/checks/plain_perplexity.py FOLDER_OF_MODEL TEXT_FILE CONTEXT [-o results/checks]
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch
from recording import keep
from transformers import AutoModelForCausalLM, AutoTokenizer


def measure(folder: str, text: str, context: int) -> list[dict[str, Any]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
    losses = []
    for start in range(0, len(ids) - context + 1, context):
        window = ids[start : start + context][None]
        with torch.inference_mode():
            losses.append(model(window, labels=window).loss)
    return [{"windows": len(losses), "perplexity": float(torch.stack(losses).mean().exp())}]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="of a model of transformers")
    parser.add_argument("file", type=Path, help="text")
    parser.add_argument("context", type=int)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    text = given.file.read_text(encoding="utf-8")
    asked = {
        "model": Path(given.folder).name, "data": given.file.name, "context": given.context,
        "data_sha256": hashlib.sha256(text.encode()).hexdigest(),
    }  # fmt: skip
    keep("plain_perplexity", asked, given.output, lambda: measure(given.folder, text, given.context))
