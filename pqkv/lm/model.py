"""A loaded language model with what the rest of pqkv asks of it: token ids, hidden states and logits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pqkv.lm.head import Head, last_states
from pqkv.lm.offload import input_device
from pqkv.lm.rope import forget_lengths
from pqkv.lm.step import forward

if TYPE_CHECKING:
    from transformers import Cache

    from pqkv.lm.rope_variant import RopeVariant


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
    rope: RopeVariant | None = None  # that it was given in place of its own
    notes: tuple[str, ...] = ()  # what loading had to say, for every record of this model
    head: Head = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "head", Head(self.name, self.model))

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and cache."""
        return next(self.model.parameters()).dtype

    @property
    def hidden_size(self) -> int:
        """Width of its hidden states."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)  # type: ignore[operator, union-attr] # transformers' own

    @property
    def embedding_rows(self) -> int:
        """Token ids that it has an embedding for: 0 up to this."""
        rows: int = self.model.get_input_embeddings().weight.shape[0]  # type: ignore[operator] # every transformers model
        return rows

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        """Token ids of a text, none added. Text is text: a string that names a control token is encoded as it is
        written, unless `parse_special` makes a control token of it.
        """
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=not parse_special, verbose=False
        )["input_ids"]
        return ids

    def encode_with_ends(self, text: str) -> tuple[list[int], list[int] | None]:
        """Token ids as `encode` gives them, and where in the text each ends; None from a tokenizer that cannot tell."""
        if not getattr(self.tokenizer, "is_fast", False):
            return self.encode(text), None
        found = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        return found["input_ids"], [end for _, end in found["offset_mapping"]]

    def states(
        self, ids: Tensor, cache: Cache | None = None, *, newest: int = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Last hidden states (B, T, hidden) of ids (B, T), of which `head` makes logits; without a cache a plain
        forward, with one a step on it.

        `newest` keeps the states of that many tokens, 0 of all. `positions` (T,) are told to the model instead of the
        tokens' own: a wrong one is a fault whose price can be measured. Raises `CacheError` if the model does not use
        the cache it is given.
        """
        with torch.inference_mode():
            states = last_states(self.model, ids, cache, **self._begin(ids, cache, positions))
            return states[:, -newest:].clone() if 0 < newest < ids.shape[1] else states

    def logits(
        self, ids: Tensor, cache: Cache | None = None, *, newest: int = 0, positions: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of ids (B, T) as the model's own forward makes them, all at once; the rest as `states`."""
        with torch.inference_mode():
            out = forward(self.model, ids, cache, logits_to_keep=newest, **self._begin(ids, cache, positions))
        logits: Tensor = out.logits.to(ids.device)  # a model spread over devices ends on another
        return logits

    def _begin(self, ids: Tensor, cache: Cache | None, positions: Tensor | None) -> dict[str, Tensor]:
        """What a forward is told besides; a sequence that begins has the model's plain rotary factors."""
        if cache is None or not cache.get_seq_length():
            forget_lengths(self.model)
        return {} if positions is None else {"position_ids": positions.expand(len(ids), -1)}

    def identity(self) -> dict[str, str]:
        """What a codebook or a record keeps of a model."""
        return {"name": self.name, "family": self.family, "config": self.config_digest, "weights": self.fingerprint}
