"""Loading language models: the bundled reference model, or any supported transformers id or folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pqkv.errors import ModelError
from pqkv.lm.checkpoint import check_loaded, damaged_file
from pqkv.lm.families import check_family
from pqkv.lm.fingerprint import config_digest, fingerprint
from pqkv.lm.model import LanguageModel
from pqkv.lm.offload import check_weights
from pqkv.lm.positions import position_limit
from pqkv.reasons import reason

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

REFERENCE = "reference"
REFERENCE_FOLDER = Path(__file__).parent / "reference"


def load_model(
    name: str = REFERENCE,
    dtype: str = "float32",
    device: str = "cpu",
    device_map: str | dict[str, int | str] | None = None,
) -> LanguageModel:
    """Load a model by transformers id or folder, or the bundled one as `reference`; with `device_map` (auto, ...; or
    one of modules to devices, cpu and disk among them) accelerate spreads its layers, and `device` is not asked for.

    Raises `ModelError` for what cannot be found, read, placed or served, and for a checkpoint that does not fill the
    model; what it holds besides is in `notes`.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # pqkv reports progress through its own callback
    source = str(REFERENCE_FOLDER) if name == REFERENCE else name
    target = _device(device)
    if device_map is not None and find_spec("accelerate") is None:
        raise ModelError("--device-map needs the accelerate package: pip install 'pqkv[device-map]'")
    if source.startswith((".", "/", "~")) and not Path(source).is_dir():
        raise ModelError(f"there is no model folder {source}; give one with config.json, weights and tokenizer")
    try:
        model, tokenizer, notes = _load(name, source, dtype, device_map)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"cannot load the model '{name}': {_cause(error, source)} (give 'reference', a folder with config.json, "
            "weights and tokenizer, or a hub id while the network reaches the hub)"
        ) from error
    return describe(name, model.eval() if device_map else model.eval().to(target), tokenizer, notes)


def _load(
    name: str, source: str, dtype: str, device_map: str | dict[str, int | str] | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """Model, tokenizer and notes; what is small and may be wrong comes before the weights."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    own = {"trust_remote_code": False}  # unsaid, transformers asks at the terminal
    config = AutoConfig.from_pretrained(source, **own)
    check_family(name, config)
    tokenizer = AutoTokenizer.from_pretrained(source, **own)
    with _without_report():
        model, info = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=getattr(torch, dtype),
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told in one line here
            **own,
        )
    return model, tokenizer, (*_unstated(source, config), *check_loaded(name, model, info))


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
        name=name if name == REFERENCE else (Path(name).name or name) if Path(name).exists() else name,
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


def _unstated(source: str, config: PreTrainedConfig) -> tuple[str, ...]:
    """A note where the number of positions is the family's default, which transformers takes without a word."""
    stated, _ = config.get_config_dict(source)
    text = config.get_text_config(decoder=True)
    if "max_position_embeddings" in {**stated, **(stated.get("text_config") or {})}:
        return ()
    return (f"config.json states no max_position_embeddings: {text.max_position_embeddings}, as {text.model_type} has",)


@contextmanager
def _without_report() -> Iterator[None]:
    """transformers logs a table of missing and other tensors, which are an error or a note here. A level would not do:
    with one that is set it logs more.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
