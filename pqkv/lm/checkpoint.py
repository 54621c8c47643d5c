"""Whether a checkpoint filled the model that its configuration describes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pqkv.errors import ModelError


def check_loaded(name: str, model: nn.Module, info: dict[str, Any]) -> tuple[str, ...]:
    """Notes on what `from_pretrained(..., output_loading_info=True)` said of a checkpoint, one line each.

    Raises `ModelError` if a tensor of the model was not in it, or in another shape: transformers leaves random numbers
    there. Tied weights and buffers that are never saved are none of these.
    """
    expected = list(model.state_dict())
    missing, unexpected = _ordered(info["missing_keys"], expected), _ordered(info["unexpected_keys"], expected)
    start = f"cannot load the model '{name}':"
    if missing and unexpected and len(missing) >= len({*expected} - _tied(model)):
        raise ModelError(
            f"{start} none of the {len(unexpected)} tensors of its checkpoint belongs to a {type(model).__name__} "
            f"(first: {unexpected[0]}); config.json and weights are of different architectures"
        )
    if missing:
        raise ModelError(
            f"{start} its checkpoint lacks {len(missing)} of {len(expected)} tensors (first: {missing[0]}), which "
            "would be random numbers; download or convert it again"
        )
    if mismatched := sorted(info["mismatched_keys"]):
        key, found, wanted = mismatched[0]
        raise ModelError(
            f"{start} its checkpoint holds {_tensors(mismatched)} of another shape than config.json says (first: "
            f"{key}, {tuple(found)} instead of {tuple(wanted)}); give the config.json that belongs to these weights"
        )
    if info.get("error_msgs"):
        raise ModelError(f"{start} {' '.join(' '.join(info['error_msgs']).split())}")
    if unexpected:
        return (f"the checkpoint holds {_tensors(unexpected)} without a place in the model (first: {unexpected[0]})",)
    return ()


def damaged_file(source: str) -> str | None:
    """The name of the first weights file in the folder `source` that cannot be opened as safetensors."""
    from safetensors import SafetensorError, safe_open

    for path in sorted(Path(source).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError):
            return path.name
    return None


def _ordered(keys: Sequence[str], expected: Sequence[str]) -> list[str]:
    """In the model's order, then by name with numbers as numbers: what is told as the first must not be chance."""
    place = {key: i for i, key in enumerate(expected)}
    return sorted(
        keys, key=lambda key: (place.get(key, len(place)), [part.zfill(9) for part in re.split(r"(\d+)", key)])
    )


def _tied(model: nn.Module) -> set[str]:
    return set(getattr(model, "all_tied_weights_keys", None) or ())


def _tensors(found: Sequence[object]) -> str:
    return f"{len(found)} tensor{'s' * (len(found) != 1)}"
