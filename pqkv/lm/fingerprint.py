"""What tells one model from another: digests of its configuration and of its attention weights."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from pqkv.lm.offload import stored_weight

_VOLATILE = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache", "architectures"}


def config_digest(config: dict[str, Any]) -> str:
    """The first 16 hexadecimal digits of SHA-256 over all settings but those that do not make a model another."""
    stable = {key: value for key, value in config.items() if key not in _VOLATILE and not key.startswith("_")}
    return hashlib.sha256(json.dumps(stable, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the attention weights of the first and last layer, rounded to bf16, wherever they are kept.

    Keys and values come from these, so codebooks belong to them; rounding makes it the same in every dtype that holds
    bf16 weights. float16 has no normal numbers below 2^-14: weights that small count as zero.
    """
    names = [name for name, _ in model.named_parameters() if ".self_attn." in name]
    hashed = hashlib.sha256()
    edges = {_layer_of(names[0]), _layer_of(names[-1])} if names else set()
    for name in names:
        if _layer_of(name) in edges:
            rounded = stored_weight(model, name).to("cpu", torch.bfloat16)
            rounded = torch.where(rounded.abs() < 2**-14, torch.zeros_like(rounded), rounded)
            data = rounded.contiguous().view(torch.int16).numpy()
            hashed.update(name.encode() + data.tobytes())
    return hashed.hexdigest()[:16]


def _layer_of(parameter: str) -> str:
    return parameter.split(".self_attn.", maxsplit=1)[0]
