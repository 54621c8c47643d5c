"""Rotary position embeddings whose factors depend on the length of a sequence.

transformers chooses the factors once per forward, by its newest position (`modeling_rope_utils.dynamic_rope_update`):
`longrope` takes its long ones past `original_max_position_embeddings`, `dynamic` computes them anew for every length
past `max_position_embeddings`. Keys that are cached keep the factors of their own step, so steps across such a switch
are not one forward, and keys of one length are not those of another. Every other type has one set of factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from pqkv.errors import ConfigError
from pqkv.lm.positions import position_limit, rope_parameters, scaling

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from pqkv.lm.model import LanguageModel


@dataclass(frozen=True, slots=True)
class RopeSwitch:
    """Where the factors of a model change: after `length` tokens, under the rope type `kind`."""

    kind: str
    length: int

    @property
    def grows(self) -> bool:
        """Whether every length past the switch has factors of its own."""
        return self.kind == "dynamic"

    def regime(self, length: int) -> str:
        """Which factors a forward of `length` tokens uses."""
        if length <= self.length:
            return f"{self.kind}, {'plain' if self.grows else 'short'} factors (<= {self.length})"
        if self.grows:
            return f"{self.kind}, factors of {length} tokens"
        return f"{self.kind}, long factors (> {self.length})"


def rope_switch(config: PreTrainedConfig) -> RopeSwitch | None:
    """Where the model's factors change with the length; None if they never do within its positions."""
    limit, declared = position_limit(config), config.get_text_config(decoder=True).max_position_embeddings
    found = []
    for rope in rope_parameters(config):
        kind, original, _ = scaling(rope, declared)
        differs = kind == "dynamic" or (kind == "longrope" and rope.get("short_factor") != rope.get("long_factor"))
        if differs and original < limit:
            found.append(RopeSwitch(kind, original))
    return min(found, key=lambda switch: switch.length, default=None)


def rope_regime(config: PreTrainedConfig, length: int) -> str | None:
    """The factors that a forward of `length` tokens uses, as `longrope, short factors (<= 4096)`; None where no length
    matters. Keys of two lengths are alike only if this is the same for both.
    """
    switch = rope_switch(config)
    return None if switch is None else switch.regime(length)


def check_rope(lm: LanguageModel, length: int, *, first: int | None = None) -> None:
    """Raise `ConfigError` unless a run through `length` tokens, `first` of them in its first forward (None: all), has
    the keys of one forward over them. One forward always has; steps have while every one of them uses the same factors.
    """
    switch = _switch_of(lm)
    if switch is None or first is None or first >= length or length <= switch.length:
        return
    if first > switch.length and not switch.grows:
        return  # positions only grow: every step is past the switch
    raise ConfigError(
        f"rope type '{switch.kind}' of {lm.name} changes its factors past {switch.length} tokens: {length} tokens in "
        f"steps do not have the keys of one forward; lower --context to {switch.length} or take --mode exact-schedule"
    )


def regime_conflict(lm: LanguageModel, calibrated: int, length: int) -> str | None:
    """One line where codebooks of windows of `calibrated` tokens meet other rope factors in forwards of `length`."""
    switch = _switch_of(lm)
    if switch is None or switch.regime(calibrated) == switch.regime(length):
        return None
    return (
        f"codebooks trained on windows of {calibrated} tokens (rope {switch.regime(calibrated)}) do not know the keys "
        f"of context {length} (rope {switch.regime(length)}); train codebooks with --context {length}"
    )


def same_factors_up_to(lm: LanguageModel, length: int) -> int:
    """How far positions go that have the factors of a forward over `length` tokens, itself told where it stands."""
    switch = _switch_of(lm)
    if switch is None or (length > switch.length and not switch.grows):
        return lm.max_positions
    return switch.length if length <= switch.length else length


def forget_lengths(model: nn.Module) -> None:
    """Give `dynamic` rotary embeddings their plain factors back: they keep those of the longest forward so far, and
    a shorter one past the switch would use them. To be called before a sequence begins; other models are left alone.
    """
    config: Any = model.config
    if all(scaling(rope, 0)[0] != "dynamic" for rope in rope_parameters(config)):
        return
    for module in model.modules():
        if isinstance(kind := getattr(module, "rope_type", None), str) and hasattr(module, "original_max_seq_len"):
            _forget(module, {"": kind})
        elif isinstance(kind, dict):
            _forget(module, {f"{layer_type}_": its for layer_type, its in kind.items()})


def _forget(rotary: Any, kinds: dict[str, str]) -> None:  # noqa: ANN401 - each family has its own class of them
    for prefix, kind in kinds.items():
        if kind == "dynamic":
            now, plain = getattr(rotary, f"{prefix}inv_freq"), getattr(rotary, f"{prefix}original_inv_freq")
            rotary.register_buffer(f"{prefix}inv_freq", plain.to(now.device), persistent=False)
            setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)


def _switch_of(lm: LanguageModel) -> RopeSwitch | None:
    config: Any = lm.model.config
    return rope_switch(config)
