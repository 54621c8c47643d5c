"""From a prompt to the token ids that a model is given, and the tokens with which it ends an answer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pqkv.config import GenerateConfig
from pqkv.errors import ConfigError
from pqkv.lm import LanguageModel
from pqkv.lm.positions import position_limit
from pqkv.lm.rope import check_rope
from pqkv.lm.tokens import TokenForm, check_ids, token_form
from pqkv.schedule import coded_len, first_coded


def prompt_ids(
    lm: LanguageModel, config: GenerateConfig, prompt: str, *, alone: bool = False
) -> tuple[Tensor, TokenForm]:
    """`prompt` as ids (1, T) on the model's device, in its chat template if `config` says so, and how they were made;
    `alone` says that nothing is written after it.

    Raises `ConfigError` for an empty prompt, and for one that with the new tokens is beyond the model's positions or
    too short for anything to be coded; `DataError` for ids that the model has no embedding for.
    """
    form = token_form(lm, config.bos, parse_special=config.parse_special, chat=config.chat)
    text = lm.encode(prompt, parse_special=form.parse_special)
    check_given(text)
    ids = [*form.opening, *text, *(form.chat.between if form.chat else ())]
    check_ids(lm, np.array(ids), "the prompt")
    _check_length(lm, config, len(ids), alone)
    return torch.tensor([ids], device=lm.device), form


def check_given(prompt: str | list[int]) -> None:
    """Raise `ConfigError` for a prompt of no characters, or of no tokens."""
    if not prompt:
        raise ConfigError("the prompt is empty; give some text with --prompt, --prompt-file or on standard input")


def end_tokens(lm: LanguageModel) -> frozenset[int]:
    """Tokens with which the model ends what it writes, as its generation configuration or its tokenizer says."""
    own = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
    if own is None:
        own = getattr(lm.tokenizer, "eos_token_id", None)
    return frozenset(own if isinstance(own, list) else [] if own is None else [own])


def _check_length(lm: LanguageModel, config: GenerateConfig, length: int, alone: bool) -> None:
    total, limit = length + config.tokens, position_limit(lm.model.config)
    if total > limit:
        raise ConfigError(
            f"a prompt of {length} tokens and {config.tokens} more are beyond the {limit} positions of {lm.name}; "
            f"lower --tokens to {max(1, limit - length)} or shorten the prompt"
        )
    check_rope(lm, total, first=length)
    cache = {"residual": config.residual, "sink_tokens": config.sink_tokens}
    # the last token is chosen by a step that finds all but the newest two cached
    if config.codes_anything and not coded_len(total - 2, page_size=config.page_size, **cache):
        least = first_coded(**cache) + 2
        remedy = f"give a prompt of {least - 1} tokens" if alone else f"raise --tokens to {least - length}"
        raise ConfigError(
            f"a prompt of {length} tokens and {config.tokens} more leave nothing coded: the first "
            f"{config.sink_tokens} and the newest {config.residual} stay exact; "
            f"{remedy}, or lower --residual and --page-size"
        )
