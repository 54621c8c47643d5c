"""Perplexity by transformers alone, to hold `pqkv eval` against.

.venv/bin/python experiments/checks/plain_perplexity.py FOLDER_OF_MODEL TEXT_FILE CONTEXT
"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, file, context = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
text = open(file, encoding="utf-8").read()
ids = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False, return_tensors="pt").input_ids[0]
losses = []
for start in range(0, len(ids) - context + 1, context):
    window = ids[start : start + context][None]
    with torch.inference_mode():
        losses.append(model(window, labels=window).loss)
print(f"{len(losses)} windows of {context}: perplexity {torch.stack(losses).mean().exp():.6f}")
