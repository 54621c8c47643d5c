"""What the model card says of a model, measured with pqkv's own text, windows and recall prompts."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqkv.lm.capture import capture
from pqkv.lm.model import LanguageModel
from pqkv.quality.recall import DEPTHS, answered, build_prompts
from pqkv.text import Corpus, TokenStream, load_corpus, tokenize, windows
from refmodel.numpy_forward import forward

BUCKETS = (0, 128, 512, 1024, 2048, 4096, 8192)


def losses(lm: LanguageModel, tokens: np.ndarray) -> np.ndarray:
    """Negative log-likelihood (n, T - 1) in nats of each next token of windows (n, T)."""
    rows = []
    for window in tokens:
        ids = torch.from_numpy(window)
        logits = lm.logits(ids[None].to(lm.device))[0, :-1].float()
        rows.append(torch.nn.functional.cross_entropy(logits, ids[1:].to(lm.device), reduction="none").cpu().numpy())
    return np.stack(rows).astype(np.float64)


def text_figures(lm: LanguageModel, corpus: Corpus, lengths: tuple[int, ...], count: int) -> dict[str, Any]:
    """Perplexity at each length, bits per byte at the longest, perplexity by position in it."""
    stream = tokenize(corpus, lm.encode, lm.separator)
    found: dict[str, Any] = {"windows": {}, "perplexity": {}}
    for length in lengths:
        if len(stream.tokens) < length:
            continue
        chosen = windows(stream, length, max(1, count * lengths[0] // length, 4)).tokens
        nll = losses(lm, chosen)
        found["windows"][length] = len(chosen)
        found["perplexity"][length] = float(np.exp(nll.mean()))
        found["bits_per_byte"] = float(nll.mean() / math.log(2) / _bytes_per_token(lm, stream, chosen))
        found["length"] = length
        found["by_position"] = {
            f"{low}-{min(high, length)}": float(np.exp(nll[:, low : min(high, length)].mean()))
            for low, high in pairwise(BUCKETS)
            if low < length - 1
        }
    return found


def _bytes_per_token(lm: LanguageModel, stream: TokenStream, chosen: np.ndarray) -> float:
    """Of the windows themselves; a separator counts as no byte."""
    texts = lm.tokenizer.batch_decode(chosen, skip_special_tokens=True)
    return sum(len(text.encode()) for text in texts) / chosen.size


def recall_figures(lm: LanguageModel, filler: TokenStream, lengths: tuple[int, ...], prompts: int) -> dict[str, Any]:
    """By length: the share of whole answers right and of their tokens, and of whole answers by depth."""
    found: dict[str, Any] = {}
    for length in lengths:
        made = build_prompts(lm, windows(filler, length, prompts).tokens, seed=0)
        rows = [row for p in made for row in answered(p, lm.logits(torch.from_numpy(p.ids)[None].to(lm.device))[0])]
        found[str(length)] = {
            "questions": len(rows),
            "whole": float(np.mean([whole for _, whole, _ in rows])),
            "tokens": float(np.mean([share for _, _, share in rows])),
            "by_depth": {
                str(depth): float(np.mean(own)) for depth in DEPTHS if (own := [w for d, w, _ in rows if d == depth])
            },
        }
    return found


def numpy_difference(lm: LanguageModel, folder: Path, ids: np.ndarray) -> float:
    """Largest difference of the model's logits from the independent forward, on ids (T,)."""
    ours = lm.logits(torch.from_numpy(ids)[None].to(lm.device))[0].double().cpu().numpy()
    return float(np.abs(ours - forward(folder, ids)).max())


def cache_statistics(lm: LanguageModel, stream: TokenStream) -> list[dict[str, float]]:
    """Per layer: mean norm of keys and of values, and root mean square of the largest channel over the median one's."""
    samples = capture(lm, windows(stream, 1024, 8).tokens, 4096, seed=0)
    rows = []
    for layer, (keys, values) in enumerate(zip(samples.keys, samples.values, strict=True)):
        row: dict[str, float] = {"layer": layer}
        for name, side in (("key", keys), ("value", values)):
            spread = side.square().mean(1).sqrt()  # (Hkv, D)
            row[f"{name}_norm"] = float(side.norm(dim=-1).mean())
            row[f"{name}_outlier"] = float((spread.amax(-1) / spread.median(-1).values).max())
        rows.append(row)
    return rows


def corpora(folder: Path) -> dict[str, Corpus]:
    """WikiText-2 test, the held-out novel and the standard library's test split; the first two lie in `folder`."""
    return {
        "WikiText-2 test": load_corpus(str(folder / "wikitext-2-raw" / "test.txt"), None, default="all"),
        "Bleak House": load_corpus(str(folder / "books" / "bleak_house.txt"), None, default="all"),
        "stdlib test": load_corpus("stdlib", "test", default="test"),
    }
