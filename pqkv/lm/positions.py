"""How many positions a model serves: what its configuration states, or what scaled rotary embeddings make of that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pqkv.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pqkv.lm.model import LanguageModel


def position_limit(config: PreTrainedConfig) -> int:
    """How many positions the model's rotary embedding serves.

    It is `max_position_embeddings`, or what the rope type makes of the positions before scaling: `factor` times them.
    Published configurations of YaRN, `linear` and `dynamic` state either number there, those of `llama3` and
    `longrope` the scaled one unless it equals the original. Where each layer type has its own rope (Gemma 3), the
    scaled one is stated. Raises `ModelError` where the configuration states none.
    """
    text = config.get_text_config(decoder=True)
    declared = getattr(text, "max_position_embeddings", None)
    if not isinstance(declared, int) or declared < 1:
        raise ModelError(f"the configuration of '{text.model_type}' states no max_position_embeddings: add it")
    ropes = rope_parameters(text)
    if len(ropes) != 1 or _nested(text):
        return declared
    kind, original, factor = scaling(ropes[0], declared)
    stretches = kind in ("linear", "yarn", "dynamic") or (kind in ("llama3", "longrope") and declared <= original)
    return max(declared, int(factor * original)) if stretches else declared


def positions_refusal(lm: LanguageModel, length: int) -> str | None:
    """One line why `length` tokens are too many for the model, None if they are not."""
    config: Any = lm.model.config
    if length <= position_limit(config):
        return None
    text = config.get_text_config(decoder=True)
    return (
        f"context {length} is beyond the {position_limit(text)} positions of {lm.name} (max_position_embeddings "
        f"{text.max_position_embeddings}, {_named(text)}); lower --context or take a model with more positions"
    )


def positions_note(lm: LanguageModel, length: int) -> str | None:
    """One line where `length` tokens are more than `max_position_embeddings` and rope stretches far enough."""
    config: Any = lm.model.config
    text = config.get_text_config(decoder=True)
    if not text.max_position_embeddings < length <= position_limit(text):
        return None
    return (
        f"{length} tokens are more than max_position_embeddings ({text.max_position_embeddings}); "
        f"{_named(text)}, makes them {position_limit(text)}"
    )


def rope_parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The rope parameters of a model: one set, or one for each layer type that it has."""
    text = config.get_text_config(decoder=True)
    given = _given(text)
    if not _nested(text):
        return [given] if given else []
    types = getattr(text, "layer_types", None) or list(given)
    return [rope for kind, rope in given.items() if kind in types and isinstance(rope, dict)]


def scaling(rope: dict[str, Any], declared: int) -> tuple[str, int, float]:
    """Rope type, positions before scaling and factor of one set of parameters; `declared` positions of the model."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    original = None if kind == "dynamic" else rope.get("original_max_position_embeddings")  # which it never reads
    return kind, original or declared, float(rope.get("factor") or 1.0)


def _given(text: PreTrainedConfig) -> dict[str, Any]:
    return getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}


def _nested(text: PreTrainedConfig) -> bool:
    return any(isinstance(value, dict) for value in _given(text).values())


def _named(text: PreTrainedConfig) -> str:
    """`rope type 'yarn', factor 4 on 4096 positions`."""
    said = []
    for rope in rope_parameters(text):
        kind, original, factor = scaling(rope, text.max_position_embeddings)
        said.append(f"rope type '{kind}'" + (f", factor {factor:g} on {original} positions" if factor != 1.0 else ""))
    return " and ".join(said) or "no rope"
