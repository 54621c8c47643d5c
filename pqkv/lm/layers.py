"""Which layers of a model pqkv serves: those with full attention. The others keep transformers' own cache layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, CacheLayerMixin, get_layer_types_and_kwargs

from pqkv.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Types of all layers in order, with what transformers needs to make its own."""

    types: tuple[str, ...]
    settings: tuple[dict[str, Any], ...]

    @property
    def coded(self) -> tuple[int, ...]:
        """Indices of the layers pqkv serves."""
        return tuple(i for i, kind in enumerate(self.types) if kind == "full_attention")

    def build(self, make: Callable[[int], CacheLayerMixin]) -> list[CacheLayerMixin]:
        """A cache layer for every layer of the model: `make(k)` for the k-th coded one, transformers' own elsewhere."""
        coded = self.coded
        return [
            make(coded.index(i)) if i in coded else DYNAMIC_LAYER_TYPE_MAPPING[kind](**more)
            for i, (kind, more) in enumerate(zip(self.types, self.settings, strict=True))
        ]

    def __str__(self) -> str:
        """`4 of 6 layers`."""
        return f"{len(self.coded)} of {len(self.types)} layers"


def layer_plan(model_config: PreTrainedConfig) -> LayerPlan:
    """Read a transformers configuration. Raises `ModelError` if no layer has full attention."""
    types, settings = get_layer_types_and_kwargs(model_config.get_text_config(decoder=True))
    plan = LayerPlan(tuple(types), tuple(settings))
    if not plan.coded:
        raise ModelError(f"none of the model's {len(types)} layers has full attention: nothing to code")
    return plan
