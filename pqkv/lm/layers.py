"""Which layers of a model pqkv serves: those with full attention. The others keep transformers' own cache layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers.cache_utils import DYNAMIC_LAYER_TYPE_MAPPING, CacheLayerMixin, get_layer_types_and_kwargs

from pqkv.errors import ModelError
from pqkv.lm.windows import effective_window

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

    @property
    def windows(self) -> tuple[int, ...]:
        """Sliding windows, in tokens, of the layers that pqkv does not serve."""
        others = (more for kind, more in zip(self.types, self.settings, strict=True) if kind != "full_attention")
        return tuple(int(more["sliding_window"]) for more in others if "sliding_window" in more)

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
    """Read a transformers configuration; a window that no position of the model outgrows is full attention. Raises
    `ModelError` if no layer has full attention.
    """
    text = model_config.get_text_config(decoder=True)
    layers = [
        (kind, more) if _bites(text, kind, more) else ("full_attention", {})
        for kind, more in zip(*get_layer_types_and_kwargs(text), strict=True)
    ]
    plan = LayerPlan(tuple(kind for kind, _ in layers), tuple(more for _, more in layers))
    if not plan.coded:
        windows = sorted({more["sliding_window"] for more in plan.settings if "sliding_window" in more})
        seen = f" (sliding windows of {', '.join(map(str, windows))} tokens)" if windows else ""
        raise ModelError(f"none of the model's {len(layers)} layers has full attention{seen}: nothing to code")
    return plan


def _bites(text: PreTrainedConfig, kind: str, settings: dict[str, Any]) -> bool:
    """Whether a layer is anything but full attention."""
    if kind in ("sliding_attention", "chunked_attention"):
        return effective_window(text, settings["sliding_window"]) is not None
    return kind != "full_attention"
