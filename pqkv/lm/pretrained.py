"""transformers' own loading: what is small and may be wrong before the weights, and nothing written to the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from pqkv.lm.checkpoint import check_loaded
from pqkv.lm.families import check_family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def read_pretrained(
    name: str,
    place: str,
    dtype: str,
    device_map: str | dict[str, int | str] | None = None,
    *,
    gguf: str | None = None,
    offline: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]:
    """Model, tokenizer and notes from a folder or hub id; of a folder's file `gguf` if one is named, dequantized;
    `offline` from the hub's local cache.

    Raises `ModelError` for a family that is not served and for weights that are not complete, and what transformers
    raises.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    own: dict[str, Any] = {"trust_remote_code": False}  # unsaid, transformers asks at the terminal
    own |= {"gguf_file": gguf} if gguf else {}
    own |= {"local_files_only": True} if offline else {}
    with _quiet(), _without_bar() if gguf else nullcontext():
        config = AutoConfig.from_pretrained(place, **own)
        check_family(name, config)
        tokenizer = AutoTokenizer.from_pretrained(place, **own)
        model, info = AutoModelForCausalLM.from_pretrained(
            place,
            config=config,
            dtype=getattr(torch, dtype),
            device_map=device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are told in one line here
            **own,
            **(_dequantized() if gguf else {}),
        )
    if gguf:
        _forget_quantization(model)
        return model, tokenizer, check_loaded(name, model, info)
    return model, tokenizer, (*_unstated(config, place, own), *check_loaded(name, model, info))


def _unstated(config: PreTrainedConfig, place: str, own: dict[str, Any]) -> tuple[str, ...]:
    """A note where the number of positions is the family's default, which transformers takes without a word."""
    stated, _ = config.get_config_dict(place, **own)
    text = config.get_text_config(decoder=True)
    if "max_position_embeddings" in {**stated, **(stated.get("text_config") or {})}:
        return ()
    return (f"config.json states no max_position_embeddings: {text.max_position_embeddings}, as {text.model_type} has",)


def _dequantized() -> dict[str, Any]:
    """Keeps weights from staying in their blocks where transformers has kernels for those."""
    from transformers import GgufConfig

    return {"quantization_config": GgufConfig(dequantize=True)}


def _forget_quantization(model: PreTrainedModel) -> None:
    """Of dequantized weights transformers still says that they are quantized: it would not save them, and its settings
    would not be those of the same weights in a folder.
    """
    model.hf_quantizer = None
    for owner, name in ((model.config, "quantization_config"), (model, "is_quantized"), (model, "quantization_method")):
        if name in vars(owner):
            delattr(owner, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers logs a table of missing and other tensors, the hub's client every try, which are an error or a note
    here. A level would not do: with one that is set transformers logs more.
    """

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    def is_grave(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    filters = {"transformers.modeling_utils": is_other, "huggingface_hub.utils._http": is_grave}
    for name, passes in filters.items():
        logging.getLogger(name).addFilter(passes)
    try:
        yield
    finally:
        for name, passes in filters.items():
            logging.getLogger(name).removeFilter(passes)


@contextmanager
def _without_bar() -> Iterator[None]:
    """The GGUF loader draws a bar of its own, whatever transformers is told of bars."""
    from transformers import modeling_gguf_pytorch_utils as loader

    bar = loader.tqdm
    loader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        loader.tqdm = bar
