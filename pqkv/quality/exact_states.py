"""Hidden states of the exact cache: what every cell of a context compares with."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.errors import ModelError
from pqkv.lm import LanguageModel
from pqkv.quality.batches import FORWARD_TOKENS
from pqkv.quality.modes import exact_states

KEPT_BYTES = 256 << 20  # of the states of one context


class ExactStates:
    """Last hidden states of the exact cache, kept for the batches of one context as far as `KEPT_BYTES` go."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self._kept: dict[tuple[bytes, int], Tensor] = {}
        self._length = self._bytes = 0

    def __call__(self, ids: Tensor, newest: int = 0) -> Tensor:
        """States (B, T, hidden) of ids (B, T), or of their `newest` tokens. Raises `ModelError` if they are NaN."""
        if ids.shape[1] != self._length:
            self._kept, self._length, self._bytes = {}, ids.shape[1], 0
        key = (ids.cpu().numpy().tobytes(), newest)
        if key not in self._kept:
            parts = ids.split(max(1, FORWARD_TOKENS // ids.shape[1]))
            states = torch.cat([exact_states(self.lm, part, newest) for part in parts])
            self.check(states)
            size = states.numel() * states.element_size()
            if self._bytes + size > KEPT_BYTES:
                return states
            self._kept[key], self._bytes = states, self._bytes + size
        return self._kept[key]

    def head(self, states: Tensor) -> Tensor:
        """Logits of some of these states. Raises `ModelError` if they are NaN."""
        logits = self.lm.head(states)
        self.check(logits)
        return logits

    def check(self, found: Tensor) -> None:
        """Raise `ModelError` if states, logits or measures of the exact cache are NaN: codes need not be tried."""
        if found.isnan().any():
            raise ModelError(
                f"the exact cache's own logits are NaN in {str(self.lm.dtype).removeprefix('torch.')}: "
                "run it in --dtype bfloat16 or float32, and check the weights if that does not help"
            )
