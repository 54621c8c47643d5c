"""Loading language models: the bundled reference model, or any supported transformers id or folder."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pqkv.errors import ModelError
from pqkv.lm.families import check_family
from pqkv.lm.model import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE = "reference"
REFERENCE_FOLDER = Path(__file__).parent / "reference"


def load_model(
    name: str = REFERENCE, dtype: str = "float32", device: str = "cpu", device_map: str | None = None
) -> LanguageModel:
    """Load a model by transformers id or folder, or the bundled one as `reference`; with `device_map` (auto, ...)
    accelerate spreads its layers over all devices, and `device` is not asked for.

    Raises `ModelError` for what cannot be found, read, placed or served.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # pqkv reports progress through its own callback
    source = str(REFERENCE_FOLDER) if name == REFERENCE else name
    target = _device(device)
    if device_map is not None and find_spec("accelerate") is None:
        raise ModelError("--device-map needs the accelerate package: pip install 'pqkv[device-map]'")
    if source.startswith((".", "/", "~")) and not Path(source).is_dir():
        raise ModelError(f"there is no model folder {source}; give one with config.json, weights and tokenizer")
    try:
        config = AutoConfig.from_pretrained(source)
        check_family(name, config)
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=getattr(torch, dtype), device_map=device_map
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except ModelError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load the model '{name}': {reason} (give 'reference', a folder with config.json, weights and "
            "tokenizer, or a hub id while the network reaches the hub)"
        ) from error
    return describe(name, model.eval() if device_map else model.eval().to(target), tokenizer)


def describe(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> LanguageModel:
    """Wrap a loaded transformers model; raises `ModelError` if its family is not supported."""
    from pqkv.lm.layers import layer_plan

    check_family(name, model.config)
    config = model.config.get_text_config(decoder=True)
    eos = getattr(tokenizer, "eos_token_id", None)
    return LanguageModel(
        name=name if name == REFERENCE else (Path(name).name or name) if Path(name).exists() else name,
        model=model,
        tokenizer=tokenizer,
        family=config.model_type,
        num_layers=config.num_hidden_layers,
        coded_layers=layer_plan(model.config).coded,
        num_heads=config.num_attention_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        max_positions=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        separator=eos if isinstance(eos, int) else None,
        config_digest=_config_digest(config.to_dict()),
        fingerprint=_fingerprint(model),
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"device '{name}' cannot be used: {reason} (try --device cpu)") from error
    return device


_VOLATILE = {"transformers_version", "dtype", "torch_dtype", "_name_or_path", "use_cache", "architectures"}


def _config_digest(config: dict[str, Any]) -> str:
    stable = {key: value for key, value in config.items() if key not in _VOLATILE and not key.startswith("_")}
    return hashlib.sha256(json.dumps(stable, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _fingerprint(model: nn.Module) -> str:
    """SHA-256 over the attention weights of the first and last layer, rounded to bf16.

    Keys and values come from these, so codebooks belong to them; rounding makes it the same in every dtype that holds
    bf16 weights. float16 has no normal numbers below 2^-14: weights that small count as zero.
    """
    named: list[tuple[str, Tensor]] = [(n, p) for n, p in model.named_parameters() if ".self_attn." in n]
    hashed = hashlib.sha256()
    edges = {_layer_of(named[0][0]), _layer_of(named[-1][0])} if named else set()
    for name, parameter in named:
        if _layer_of(name) in edges:
            rounded = parameter.detach().to("cpu", torch.bfloat16)
            rounded = torch.where(rounded.abs() < 2**-14, torch.zeros_like(rounded), rounded)
            data = rounded.contiguous().view(torch.int16).numpy()
            hashed.update(name.encode() + data.tobytes())
    return hashed.hexdigest()[:16]


def _layer_of(parameter: str) -> str:
    return parameter.split(".self_attn.", maxsplit=1)[0]
