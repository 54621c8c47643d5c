"""Weights that accelerate keeps elsewhere: its hooks bring them for the forward, the parameter itself is on `meta`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pqkv.errors import ModelError


def input_device(model: nn.Module) -> torch.device:
    """Where token ids go: to the embedding, or where its hook executes it."""
    embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator] # of PreTrainedModel
    device = next(embedding.parameters()).device
    if device.type != "meta":
        return device
    executed = (getattr(hook, "execution_device", None) for hook in _hooks(embedding))
    return torch.device(next((place for place in executed if place is not None), device))


def check_weights(name: str, model: nn.Module) -> None:
    """Raise `ModelError` if a weight is on `meta` and no hook brings it: it holds no numbers."""
    lost = [key for key, weight in model.named_parameters() if weight.is_meta and not _stores(model, key)]
    if lost:
        raise ModelError(
            f"{len(lost)} weights of the model '{name}' are on the meta device and hold no numbers (first: {lost[0]}); "
            "take another --device or --device-map (cpu, auto)"
        )


def stored_weight(model: nn.Module, name: str) -> Tensor:
    """The parameter called `name`, read from where its hook keeps it if it is offloaded."""
    weight = model.get_parameter(name)
    if not weight.is_meta:
        return weight.detach()
    for stored, key in _stores(model, name):
        try:
            found: Tensor = stored[key]
        except KeyError:
            continue
        return found
    raise ModelError(f"the weight {name} is on the meta device and holds no numbers")


def _stores(model: nn.Module, name: str) -> list[tuple[Any, str]]:
    """Maps of offloaded weights that may hold the parameter, the module's own first, with its name in each."""
    parts = name.split(".")
    found = []
    for depth in range(len(parts) - 1, -1, -1):
        for hook in _hooks(model.get_submodule(".".join(parts[:depth]))):
            if (stored := getattr(hook, "weights_map", None)) is not None:
                found.append((stored, ".".join(parts[depth:])))
    return found


def _hooks(module: nn.Module) -> Iterator[Any]:
    """accelerate's hooks on a module: none, one or a sequence."""
    hook = getattr(module, "_hf_hook", None)
    if hook is not None:
        yield from getattr(hook, "hooks", (hook,))
