"""Loading language models: one that goes by a name, or any supported transformers id, folder or GGUF file."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pqkv.errors import ModelError
from pqkv.lm.checkpoint import damaged_file
from pqkv.lm.families import check_family
from pqkv.lm.fingerprint import config_digest, fingerprint
from pqkv.lm.gguf import read_gguf
from pqkv.lm.model import LanguageModel
from pqkv.lm.named import NAMED, REFERENCE, REFERENCE_FOLDER, find_model
from pqkv.lm.offload import check_weights
from pqkv.lm.positions import position_limit
from pqkv.lm.pretrained import read_pretrained
from pqkv.lm.rope_variant import RopeVariant, set_rope
from pqkv.reasons import reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["REFERENCE", "REFERENCE_FOLDER", "describe", "load_model"]


def load_model(
    name: str = REFERENCE,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: str | dict[str, int | str] | None = None,
    rope: RopeVariant | None = None,
) -> LanguageModel:
    """Load one of the named models (`named.NAMED`), or a model by folder, GGUF file or transformers id; with
    `device_map` (auto, ...; or one of modules to devices, cpu and disk among them) accelerate spreads its layers, and
    `device` is not asked for; with `rope` it has another rotary embedding than its own.

    Raises `ModelError` for what cannot be found, read, placed or served, and for a checkpoint that does not fill the
    model; what it holds besides, and where it came from, is in `notes`.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # pqkv reports progress through its own callback
    target = _device(device)
    if device_map is not None and find_spec("accelerate") is None:
        raise ModelError("--device-map needs the accelerate package: pip install 'pqkv[device-map]'")
    found = find_model(name)
    try:
        if found.gguf is not None:
            model, tokenizer, notes = read_gguf(name, found.gguf, dtype, device_map)
        else:
            model, tokenizer, notes = read_pretrained(name, found.place, dtype, device_map, offline=found.offline)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"cannot load the model '{name}': {_cause(error, found.place)} ({found.remedy})") from error
    model = model.eval() if device_map else model.eval().to(target)
    if rope is not None:
        set_rope(name, model, rope)
    return replace(describe(name, model, tokenizer, (*found.notes, *notes)), rope=rope)


def describe(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, notes: tuple[str, ...] = ()
) -> LanguageModel:
    """Wrap a loaded transformers model; raises `ModelError` if its family is not supported or its weights hold no
    numbers.
    """
    from pqkv.lm.layers import layer_plan

    check_family(name, model.config)
    check_weights(name, model)
    config = model.config.get_text_config(decoder=True)
    eos = getattr(tokenizer, "eos_token_id", None)
    return LanguageModel(
        name=name if name in NAMED else (Path(name).name or name) if Path(name).exists() else name,
        model=model,
        tokenizer=tokenizer,
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        coded_layers=layer_plan(model.config).coded,
        num_heads=config.num_attention_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        max_positions=position_limit(config),
        vocab_size=config.vocab_size,
        separator=eos if isinstance(eos, int) else None,
        config_digest=config_digest(config.to_dict()),
        fingerprint=fingerprint(model),
        notes=notes,
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"device '{name}' cannot be used: {reason(error)} (try --device cpu)") from error
    return device


def _cause(error: Exception, source: str) -> str:
    """What was wrong, where transformers' own words name a remedy that pqkv has not, or no file."""
    text = reason(error)
    if "trust_remote_code" in str(error):
        return "it brings Python code of its own, which pqkv does not run: its attention cannot be checked"
    if "backend tokenizer" in text:
        return "its tokenizer cannot be read: tokenizer.json is missing, or a package for it (sentencepiece, tiktoken)"
    if type(error).__name__ == "SafetensorError":
        return f"{damaged_file(source) or 'a weights file'} is cut off or damaged: {text}; download it again"
    return text
