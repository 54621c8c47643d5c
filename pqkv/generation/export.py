"""The cache of a prompt as a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from pqkv.cache.exported import save_export
from pqkv.errors import CacheError
from pqkv.generation.session import Session
from pqkv.lm import PQKVCache
from pqkv.lm.step import forward


@dataclass(frozen=True, slots=True)
class Exported:
    """What a file holds of one sequence."""

    tokens: int
    sinks: int
    in_pages: int
    residual: int
    pages: int
    layers: int
    bytes: int


def export(session: Session, path: Path) -> Exported:
    """Run the prompt of `session` through its model on the first of its codings, and write the cache to `path`."""
    (coding,) = session.codings.values()
    cache = PQKVCache(session.lm.model.config, coding.codes, session.config.cache())
    with torch.inference_mode():
        forward(session.lm.model, session.ids, cache, logits_to_keep=1)
    if cache.kv is None:
        raise CacheError(f"{session.lm.name} has no layer that is coded: there is nothing to export")
    header = save_export(path, cache.kv)
    first, coded = cache.kv.layers[0], coding.codes is not None
    (tokens,), (in_pages,) = first.lengths, first.coded if coded else first.lengths
    sinks = min(tokens, session.config.sink_tokens) if coded else 0
    after, size = tokens - sinks - in_pages, path.stat().st_size
    return Exported(tokens, sinks, in_pages, after, first.page_counts()[0], header["layers"], size)
