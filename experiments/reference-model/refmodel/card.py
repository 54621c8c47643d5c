"""The model card: figures as JSON, and as the README of the model's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pqkv.env import environment
from pqkv.lm.load import load_model
from pqkv.text import tokenize
from refmodel import measures

LENGTHS = (512, 2048, 4096, 8192)
RECALL_LENGTHS = (512, 1024, 2048, 4096, 8192)


def measure(
    model: Path, corpora: Path, *, windows: int, prompts: int, device: str, report: Callable[[str], None]
) -> dict[str, Any]:
    """All figures of the model in folder `model`, in float32."""
    lm = load_model(str(model), device=device)
    texts = measures.corpora(corpora)
    figures: dict[str, Any] = {"parameters": sum(p.numel() for p in lm.model.parameters()), "env": environment()}
    figures["text"] = {}
    for name, corpus in texts.items():
        report(name)
        figures["text"][name] = measures.text_figures(lm, corpus, LENGTHS, windows)
    stdlib = tokenize(texts["stdlib test"], lm.encode, lm.separator)
    report("recall")
    figures["recall"] = measures.recall_figures(lm, stdlib, RECALL_LENGTHS, prompts)
    report("independent forward")
    figures["numpy_difference"] = measures.numpy_difference(lm, model, np.asarray(stdlib.tokens[:512]))
    report("keys and values")
    figures["cache"] = measures.cache_statistics(lm, stdlib)
    return figures


def write_card(folder: Path, figures: dict[str, Any], facts: str) -> None:
    """`card.json`, and `README.md`: `facts`, which say how the model came about, followed by the figures."""
    (folder / "card.json").write_text(json.dumps(figures, indent=1) + "\n")
    (folder / "README.md").write_text(facts.rstrip() + "\n\n" + tables(figures))


def tables(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    texts, recall = figures["text"], figures["recall"]
    cpu = figures["env"].get("cpu", "")
    lines = [
        f"**Measured** in float32, disjoint windows ({figures['parameters']:,} parameters; {cpu});",
        "`card.json` holds the same figures and the environment.",
        "",
        "| text | " + " | ".join(f"PPL at {n:,}" for n in LENGTHS) + " | bits per byte | at length |",
        "|---|" + "---|" * (len(LENGTHS) + 2),
    ]
    for name, row in texts.items():
        values = [f"{row['perplexity'][n]:.2f}" if n in row["perplexity"] else "" for n in LENGTHS]
        lines.append(f"| {name} | {' | '.join(values)} | {row['bits_per_byte']:.3f} | {row['length']:,} |")
    spans = list(next(iter(texts.values()))["by_position"])
    lines += ["", "| perplexity by position | " + " | ".join(spans) + " |", "|---|" + "---|" * len(spans)]
    for name, row in texts.items():
        lines.append(
            f"| {name} | " + " | ".join(f"{row['by_position'].get(s, float('nan')):.2f}" for s in spans) + " |"
        )
    depths = list(next(iter(recall.values()))["by_depth"])
    lines += [
        "",
        "Recall: facts planted in held-out code at several depths, all asked at the end; whole answers right.",
        "",
        "| length | questions | whole answers | digits | " + " | ".join(f"depth {d}" for d in depths) + " |",
        "|---|" + "---|" * (len(depths) + 3),
    ]
    for length, row in recall.items():
        cells = " | ".join(f"{row['by_depth'][d]:.0%}" if d in row["by_depth"] else "" for d in depths)
        lines.append(f"| {int(length):,} | {row['questions']} | {row['whole']:.0%} | {row['tokens']:.0%} | {cells} |")
    lines += [
        "",
        "Keys (after RoPE) and values by layer: mean norm, and the root mean square of the largest channel over that",
        "of the median channel, largest head. KIVI and KVQuant show a few key channels of 7B models far above all",
        "others, in fixed places, and no such channels of values.",
        "",
        "| layer | key norm | key outlier | value norm | value outlier |",
        "|---|---|---|---|---|",
    ]
    for row in figures["cache"]:
        cells = (row[key] for key in ("key_norm", "key_outlier", "value_norm", "value_outlier"))
        lines.append(f"| {row['layer']} | " + " | ".join(f"{value:.2f}" for value in cells) + " |")
    difference = figures["numpy_difference"]
    lines += ["", f"Largest difference from an independent forward in numpy float64, 512 tokens: {difference:.1e}."]
    return "\n".join(lines) + "\n"
