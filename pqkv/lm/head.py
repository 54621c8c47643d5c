"""The head of a model: logits of its last hidden states, a few positions at a time.

Logits of all positions are large (8,192 tokens of 262,144 words: 8.6 GB), the states they come from are not. A family
makes them by `lm_head` and what `_AFTER` says; whether a model does that and nothing else is tried on the model itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pqkv.errors import ModelError
from pqkv.lm.offload import input_device
from pqkv.lm.step import forward

_TRIED_TOKENS = 4
_ROUNDINGS = 4  # of the largest logit: the same products in the same order differ by less


def _scaled(logits: Tensor, config: Any) -> Tensor:  # noqa: ANN401 - each family has its own configuration class
    return logits.div_(config.logits_scaling)


def _capped(logits: Tensor, config: Any) -> Tensor:  # noqa: ANN401 - each family has its own configuration class
    cap = config.final_logit_softcapping
    if cap is None:
        return logits
    if logits.requires_grad:  # a tangent's gradient is made of the tangent: it must stay
        return logits.div(cap).tanh().mul(cap)
    return logits.div_(cap).tanh_().mul_(cap)


# what a family's forward does with the output of `lm_head`; the others do nothing
_AFTER: dict[str, Callable[[Tensor, Any], Tensor]] = {"granite": _scaled, "gemma3_text": _capped}


class Head:
    """Makes logits (..., V) of states (..., hidden) as the forward of `model` does. Called for the first time, or by
    `check`, it is held to that forward on a few tokens.
    """

    def __init__(self, name: str, model: nn.Module) -> None:
        self._name, self._model, self._held = name, model, False

    @property
    def vocab_size(self) -> int:
        """Words that it makes a logit for."""
        return int(self._model.config.get_text_config(decoder=True).vocab_size)  # type: ignore[operator, union-attr] # transformers' own

    def __call__(self, states: Tensor) -> Tensor:
        """Logits, in the model's type and on the device of `states`. Raises `ModelError` as `check` does."""
        self.check()
        return self._logits(states)

    def check(self) -> None:
        """Raise `ModelError` if the model's own forward makes other logits of the same states."""
        if self._held:
            return
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.vocab_size, (1, _TRIED_TOKENS), generator=generator).to(input_device(self._model))
        with torch.inference_mode():
            expected = forward(self._model, ids).logits.to(ids.device)
            states = last_states(self._model, ids)
        found = self._logits(states)
        numbers = expected.isfinite()
        largest, gap = (float(t[numbers].abs().max()) if numbers.any() else 0.0 for t in (expected, found - expected))
        if not gap <= _ROUNDINGS * torch.finfo(expected.dtype).eps * largest:
            raise ModelError(
                f"the head of {self._name} does something after its last layer that pqkv does not know: its logits "
                f"differ by {gap:.3g} from those made of its hidden states; take a model with transformers' own code"
            )
        self._held = bool(numbers.any())  # where there were no numbers nothing is shown

    def differentiable(self, states: Tensor) -> Tensor:
        """Logits of `states` through which gradients flow; `check` is the caller's."""
        config: Any = self._model.config
        text = config.get_text_config(decoder=True)
        after = _AFTER.get(text.model_type, lambda logits, _: logits)
        logits: Tensor = self._model.get_output_embeddings()(states)  # type: ignore[operator] # of PreTrainedModel
        return after(logits, text).to(states.device)

    def _logits(self, states: Tensor) -> Tensor:
        with torch.inference_mode():
            return self.differentiable(states)


def last_states(model: nn.Module, ids: Tensor, *args: Any, **more: Any) -> Tensor:  # noqa: ANN401 - those of `forward`
    """Hidden states (B, T, hidden) of ids (B, T) after the model's last norm: what its head makes logits of."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator] # of PreTrainedModel
    states: Tensor = forward(decoder, ids, *args, **more).last_hidden_state
    return states.to(ids.device)  # a model spread over devices ends on another
