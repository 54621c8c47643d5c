"""An exact cache in a narrower type: keys and values rounded when they are cached, everything else as it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from pqkv.lm.layers import layer_plan
from pqkv.lm.one_forward import OneForwardLayer
from pqkv.lm.plugin import Attended, View, exact_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class RoundedCache(Cache):
    """A cache for one forward over an empty past whose rows see keys and values rounded to `dtype`, their own too."""

    def __init__(self, model_config: PreTrainedConfig, dtype: torch.dtype) -> None:
        plan = layer_plan(model_config)
        self.coded_layers, self.attended = plan.coded, Attended()
        super().__init__(layers=plan.build(lambda k: _RoundedLayer(self.attended, dtype)))


class _RoundedLayer(OneForwardLayer):
    def __init__(self, attended: Attended, dtype: torch.dtype) -> None:
        super().__init__(attended)
        self.rounded_to = dtype

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[View, View]:
        rounded = [states.to(self.rounded_to).to(states.dtype) for states in (key_states, value_states)]
        view = _RoundedView(self.attended, *rounded)
        return view, view


class _RoundedView(View):
    def __init__(self, attended: Attended, keys: Tensor, values: Tensor) -> None:
        super().__init__(attended)
        self.rounded_keys, self.rounded_values = keys, values

    def attend(
        self, module: nn.Module, query: Tensor, mask: Tensor | None, *, scale: float, window: int | None
    ) -> Tensor:
        return exact_attention(module, query, self.rounded_keys, self.rounded_values, mask, scale)
