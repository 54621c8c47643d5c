"""The card of codebooks on the hub: what they code, what they learnt from, what they lose, and the commands."""

from __future__ import annotations

import shlex
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from pqkv.codec.catalog import CodecSpec, Part
from pqkv.codec.codebook import CodebookSet
from pqkv.codec.codebook_header import CodebookHeader

TAGS = ("kv-cache", "pqkv", "product-quantization")


def codebook_card(books: CodebookSet, header: CodebookHeader, place: str) -> ModelCard:
    """README.md with its metadata; `place` is how `--codebooks` names the folder or repository."""
    text, name = header.calibration, header.model.name
    parts = [
        f"---\n{_metadata(books, header).to_yaml()}\n---",
        f"# KV-cache codebooks of {books.code_bits:g} bits for {name}",
        f"Keys and values of {header.num_layers} layers, {header.num_kv_heads} KV heads of {header.head_dim} elements, "
        f"as product codes of {books.code_bits:g} bits an element; recipe {header.recipe}, scope {header.scope}, "
        f"{books.nbytes():,} bytes of codebooks. They serve these weights of {name} only (attention weights "
        f"`{header.model.weights}`, configuration `{header.model.config}`), and are refused for any other.",
        "## Use",
        f"```\n{shlex.join(['pqkv', 'eval', '--model', name, '--codebooks', place])}\n```",
        f"```python\nfrom pqkv.lm import Codebooks\n\nbooks = Codebooks.from_pretrained({place!r}).books\n```",
        "## Text",
        f"{text.name}, split {text.split}: {text.tokens:,} tokens in windows of {text.context:,} at positions up to "
        f"{text.reach:,}, {header.samples:,} vectors, none of the first {text.leave_out} tokens of a window. "
        f"SHA-256 of the text: `{text.sha256}`. Do not evaluate on it.",
        "## Losses",
        "Squared error of held-out vectors of that text, over their squared distance to the mean:",
        _losses(header),
        "Perplexity, agreement and recall on other text are what the command above measures.",
        "## Trained by",
        f"```\n{train_command(header)}\n```",
        "With " + ", ".join(f"{package} {version}" for package, version in sorted(header.versions.items())) + ".",
    ]
    return ModelCard("\n\n".join(parts) + "\n")


def _metadata(books: CodebookSet, header: CodebookHeader) -> ModelCardData:
    name = header.model.name
    own: dict[str, Any] = {
        "pqkv-bits": round(books.code_bits, 4),
        "pqkv-recipe": header.recipe,
        "pqkv-model": name,
        "pqkv-weights": header.model.weights,
    }
    return ModelCardData(library_name="pqkv", tags=sorted(TAGS), base_model=name if "/" in name else None, **own)


def train_command(header: CodebookHeader) -> str:
    """`pqkv train-codebooks` with every option that codes depend on. Of composed codes what each side is made of holds
    the iterations; the header's own number, where it is another, is that of the recipe and decides nothing.
    """
    text = header.calibration
    options: dict[str, object] = {
        "model": header.model.name,
        "recipe": header.recipe,
        "data": text.name,
        "split": text.split,
        "bos": "never" if text.bos is None else "always",
        "calibration-tokens": text.tokens,
        "context": text.context,
        "positions": text.reach,
        "leave-out": text.leave_out,
        "samples": header.samples,
        "seed": header.seed,
    }
    if header.keys is None or header.values is None:
        names = ("num_subspaces", "nbits", "scope", "channels", "metric", "init", "iterations")
        options |= {name.replace("_", "-"): getattr(header, name) for name in names}
    else:
        options["codec"] = CodecSpec.of(Part("composed", header.keys), Part("composed", header.values))
    parsed = ["--parse-special"] if text.special_tokens == "parsed" else []  # or there was nothing to parse
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return shlex.join(["pqkv", "train-codebooks", *words, *parsed, "-o", "codebooks.safetensors"])


def _losses(header: CodebookHeader) -> str:
    """A table, a row a layer; files of the first version know no errors in the queries' metric."""
    in_metric = header.query_errors or (None,) * len(header.errors)
    rows = [
        f"| {layer} | {keys:.4f} | {'' if query is None else f'{query:.4f}'} | {values:.4f} |"
        for layer, ((keys, values), query) in enumerate(zip(header.errors, in_metric, strict=True))
    ]
    return "\n".join(["| layer | keys | keys, queries' metric | values |", "|---|---|---|---|", *rows])
