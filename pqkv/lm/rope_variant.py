"""Other rotary embeddings for a trained model, so that it takes more positions than it was trained on.

linear: positions divided by the factor (Chen et al. 2023). ntk: a larger base, theta factor^(R / (R - 2)), fixed and
not by length. yarn: transformers' own YaRN (Peng et al. 2023), its ramp over frequencies and its factor of the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pqkv.config import Rope
from pqkv.errors import ModelError
from pqkv.lm.positions import rope_parameters, scaling

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class RopeVariant:
    """A kind of rotary embedding and how many times the trained positions it is to reach: those of the model's
    configuration, or `trained` where it saw fewer than it says.
    """

    kind: Rope
    factor: float
    trained: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}, factor {self.factor:g}" + (f" of {self.trained}" if self.trained else "")


def rope_variant(kind: Rope, factor: float | None) -> RopeVariant | None:
    """The variant that a configuration asks for, None for the model's own."""
    return None if kind == "default" or factor is None else RopeVariant(kind, factor)


def set_rope(name: str, model: PreTrainedModel, variant: RopeVariant) -> None:
    """Give a model the rotary embedding of `variant` and as many positions. Raises `ModelError` for one whose rotary
    embedding is scaled already, is another in other layers, or cannot be made again from its configuration.
    """
    config: Any = model.config.get_text_config(decoder=True)
    ropes, stated = rope_parameters(config), config.max_position_embeddings
    if len(ropes) != 1 or scaling(ropes[0], stated)[0] != "default":
        own = " and ".join(scaling(rope, stated)[0] for rope in ropes) or "none"
        raise ModelError(f"'{name}' has rope type {own} of its own; --rope is for models of one plain rotary embedding")
    trained = config.max_position_embeddings = variant.trained or stated
    theta = float(ropes[0]["rope_theta"])
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    share = ropes[0].get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None) or 1.0)
    config.rope_parameters = {**ropes[0], **_parameters(variant, theta, int(dim * share), trained)}
    if variant.kind != "linear":  # whose positions are those before scaling, times its factor (`position_limit`)
        config.max_position_embeddings = int(trained * variant.factor)
    holders = [
        (parent, child) for parent in model.modules() for child, module in parent.named_children()
        if isinstance(getattr(module, "rope_type", None), str) and hasattr(module, "inv_freq")
    ]  # fmt: skip
    if not holders:
        raise ModelError(f"'{name}' has no rotary embedding that can be made again from its configuration")
    for parent, child in holders:
        old: Any = getattr(parent, child)
        made = type(old)(config=config)
        setattr(parent, child, made.to(old.inv_freq.device).train(old.training))


def _parameters(variant: RopeVariant, theta: float, rotated: int, trained: int) -> dict[str, Any]:
    if variant.kind == "ntk":
        return {"rope_type": "default", "rope_theta": theta * variant.factor ** (rotated / (rotated - 2))}
    if variant.kind == "linear":
        return {"rope_type": "linear", "factor": variant.factor}
    return {"rope_type": "yarn", "factor": variant.factor, "original_max_position_embeddings": trained}
