"""The Llama forward written again in numpy float64: a mistake in training or export cannot hide in a library."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def forward(folder: Path, ids: np.ndarray) -> np.ndarray:
    """Logits (T, V) of token ids (T,), from the files of a transformers folder alone."""
    config = json.loads((folder / "config.json").read_text())
    weights = _weights(folder)
    heads, kv_heads, D = (config[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    theta = (config.get("rope_parameters") or config)["rope_theta"]
    T = len(ids)
    angles = np.arange(T)[:, None] / theta ** (np.arange(0, D, 2) / D)  # (T, D/2)
    cos, sin = (np.concatenate([f(angles)] * 2, 1) for f in (np.cos, np.sin))
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        part = {k.split(".", 3)[3]: v for k, v in weights.items() if k.startswith(f"model.layers.{layer}.")}
        h = _norm(x, part["input_layernorm.weight"], config["rms_norm_eps"])
        q, k, v = ((h @ part[f"self_attn.{name}_proj.weight"].T).reshape(T, -1, D).transpose(1, 0, 2) for name in "qkv")
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = (np.repeat(side, heads // kv_heads, 0) for side in (k, v))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(D)
        scores[:, np.triu(np.ones((T, T), bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (p / p.sum(-1, keepdims=True)) @ v
        x = x + mixed.transpose(1, 0, 2).reshape(T, -1) @ part["self_attn.o_proj.weight"].T
        h = _norm(x, part["post_attention_layernorm.weight"], config["rms_norm_eps"])
        gate, up = (h @ part[f"mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        x = x + (gate / (1 + np.exp(-gate)) * up) @ part["mlp.down_proj.weight"].T
    out: np.ndarray = _norm(x, weights["model.norm.weight"], config["rms_norm_eps"]) @ weights[_head(config)].T
    return out


def _head(config: dict[str, object]) -> str:
    return "model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def _rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin


def _weights(folder: Path) -> dict[str, np.ndarray]:
    """All safetensors files of the folder in float64, read without torch: a header of JSON, then the numbers."""
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + size]).items():
            if name == "__metadata__":
                continue
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            if entry["dtype"] == "BF16":
                bits = np.frombuffer(data[begin:end], np.uint16).astype(np.uint32) << 16
                values = bits.view(np.float32)
            else:
                values = np.frombuffer(data[begin:end], {"F32": np.float32, "F16": np.float16}[entry["dtype"]])
            found[name] = values.reshape(entry["shape"]).astype(np.float64)
    return found
