"""A loaded language model with what the rest of pqkv asks of it: token ids and logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pqkv.lm.step import forward

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A loaded model with what the rest of pqkv asks of it."""

    name: str
    model: nn.Module
    tokenizer: Any
    family: str
    num_layers: int
    coded_layers: tuple[int, ...]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    vocab_size: int
    separator: int | None
    config_digest: str
    fingerprint: str
    notes: tuple[str, ...] = ()  # what loading had to say, for every record of this model

    @property
    def device(self) -> torch.device:
        """Where its inputs go: its first parameters are the embedding."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and cache."""
        return next(self.model.parameters()).dtype

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special token added."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def logits(
        self, ids: Tensor, cache: Cache | None = None, *, newest: int = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of ids (B, T); without a cache a plain forward, with one a step on it.

        `newest` keeps the logits of that many tokens, 0 of all. `positions` (T,) are told to the model instead of the
        tokens' own: a wrong one is a fault whose price can be measured. Raises `CacheError` if the model does not use
        the cache it is given.
        """
        given = {} if positions is None else {"position_ids": positions.expand(len(ids), -1)}
        with torch.inference_mode():
            out = forward(self.model, ids, cache, logits_to_keep=newest, **given)
        logits: Tensor = out.logits.to(ids.device)  # a model spread over devices ends on another
        return logits

    def identity(self) -> dict[str, str]:
        """What a codebook or a record keeps of a model."""
        return {"name": self.name, "family": self.family, "config": self.config_digest, "weights": self.fingerprint}
