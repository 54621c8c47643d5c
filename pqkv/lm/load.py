"""Language models: the bundled reference model, or any supported transformers id or folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pqkv.errors import ModelError
from pqkv.lm.families import check_family

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase

REFERENCE = "reference"
REFERENCE_FOLDER = Path(__file__).parent / "reference"


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
        tokens' own: a wrong one is a fault whose price can be measured.
        """
        given = {} if positions is None else {"position_ids": positions.expand(len(ids), -1)}
        with torch.inference_mode():
            out = self.model(
                input_ids=ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=newest, **given
            )
        logits: Tensor = out.logits.to(ids.device)  # a model spread over devices ends on another
        return logits

    def identity(self) -> dict[str, str]:
        """What a codebook or a record keeps of a model."""
        return {"name": self.name, "family": self.family, "config": self.config_digest, "weights": self.fingerprint}


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

    Keys and values come from these, so codebooks belong to them; rounding makes it the same in float32, float64 and
    bfloat16 (float16 loses the smallest weights on loading, so there it is another).
    """
    named: list[tuple[str, Tensor]] = [(n, p) for n, p in model.named_parameters() if ".self_attn." in n]
    hashed = hashlib.sha256()
    edges = {_layer_of(named[0][0]), _layer_of(named[-1][0])} if named else set()
    for name, parameter in named:
        if _layer_of(name) in edges:
            data = parameter.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy()
            hashed.update(name.encode() + data.tobytes())
    return hashed.hexdigest()[:16]


def _layer_of(parameter: str) -> str:
    return parameter.split(".self_attn.", maxsplit=1)[0]
