"""transformers' own `generate` on a coded cache, token for token beside what `pqkv generate` wrote.

python experiments/checks/generate_through_transformers.py results/generation [-o results/checks]

For every greedy record of the folder: the same model, prompt and number of tokens, no end. A row has how many tokens
are the same from the first on, and the bytes of both caches.
"""

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch
from recording import keep
from transformers import DynamicCache

from pqkv.config import CacheConfig, GenerateConfig, TrainConfig
from pqkv.generation.prompt import prompt_ids
from pqkv.generation.session import parting
from pqkv.lm import PQKVCache, attach, load_model
from pqkv.lm.defaults import default_codebooks
from pqkv.lm.step import cache_argument
from pqkv.record import Record, load_records

PROMPT = "The history of the book begins long before printing."

asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
asked.add_argument("records", type=Path)
asked.add_argument("-o", "--output", type=Path)
given = asked.parse_args()
wanted = [r for r in load_records(given.records) if r.kind == "generation" and r.config["mode"] == "greedy"]
MODEL = wanted[0].config["model"]


def measured() -> list[dict[str, Any]]:
    lm = load_model(MODEL)
    attach(lm.model)
    lm.model.generation_config.eos_token_id = None  # as --ignore-end; transformers has no argument for it
    return [row(lm, record) for record in sorted(wanted, key=lambda record: -record.config["bits"])]


def row(lm: Any, record: Record) -> dict[str, Any]:  # noqa: ANN401 - a model's own
    config = record.config
    assert config["prompt_sha256"] == hashlib.sha256(PROMPT.encode()).hexdigest()
    text = lm.model.config
    if bits := config["bits"]:
        books, _, _ = default_codebooks(lm, TrainConfig(model=MODEL, bits=bits))
        cache: Any = PQKVCache(text, books, CacheConfig())
    else:
        cache = DynamicCache(config=text)
    count = config["new_tokens"]
    ids, _ = prompt_ids(lm, GenerateConfig(model=MODEL, tokens=count), PROMPT)
    out = lm.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
        **cache_argument(lm.model, cache),
    )  # fmt: skip
    own = [float(token) for token in out[0, ids.shape[1] :]]
    parts = parting(own, record.samples["token_ids"])
    coded = isinstance(cache, PQKVCache)
    return {
        "cache": config["cache"],
        "tokens": len(own),
        "same": len(own) if parts is None else parts,
        "cache_bytes": cache.kv.memory().total if coded else None,
        "cache_bytes_of_record": record.metrics["cache_bytes"].value,
        "coded_columns": cache.attended.coded_columns if coded else 0,
    }


keep("generate_through_transformers", {"model": MODEL}, given.output, measured)
