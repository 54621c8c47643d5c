"""GGUF files through transformers' loader: refused by name before work, dequantized once, kept."""

from __future__ import annotations

import logging
import re
from collections import Counter
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from pqkv.errors import ModelError
from pqkv.lm.gguf_header import GGUFHeader, GGUFTensor, NotGGUF, read_header
from pqkv.lm.kept import Filled, KeptModel, NotKept, Source, file_digest, find_kept, keep, may_be_kept, place_for
from pqkv.lm.pretrained import read_pretrained
from pqkv.reasons import reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase, tuple[str, ...]]

_LOG = logging.getLogger("pqkv")
# Those of the loader's architectures that are families of ours: what it makes of them is tested.
ARCHITECTURES = ("llama", "qwen2", "qwen3", "phi3", "gemma3")
_NEEDED = ("gguf", "accelerate")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def read_gguf(name: str, path: Path, dtype: str, device_map: str | dict[str, int | str] | None) -> Loaded:
    """Model, tokenizer and notes from a GGUF file, or from its kept copy if there is one.

    Raises `ModelError`, before any work, for a file that is damaged, split, of an architecture or a quantization type
    that the loader lacks, or with rotary embeddings that the loader would drop; and where packages are missing.
    """
    start = f"cannot load the model '{name}': {'it' if Path(name) == path else path.name}"
    try:
        header = read_header(path)
    except NotGGUF as error:
        raise ModelError(f"{start} {error}") from error
    except OSError as error:
        raise ModelError(f"{start} cannot be read: {error.strerror or error}") from error

    def refuse(problem: str | None) -> None:
        if problem:
            raise ModelError(f"{start} {problem}")

    refuse(_split(path, header))
    if not may_be_kept(header.size):
        refuse(_unreadable(header))  # before gigabytes are hashed
    digest = file_digest(path)
    kept = find_kept(path.name, digest)
    if kept is None:
        refuse(_unreadable(header))
        kept = _dequantize(name, path, digest, header)
    if kept is None:
        model, tokenizer, notes = read_pretrained(name, str(path.parent), dtype, device_map, gguf=path.name)
        return model, tokenizer, _notes(path, digest, _kinds(header), (*notes, *_remarks(header, model)))
    model, tokenizer, _ = read_pretrained(name, str(kept.folder), dtype, device_map)
    return model, tokenizer, _notes(path, digest, kept.label.source.kinds, kept.label.notes)


def _dequantize(name: str, path: Path, digest: str, header: GGUFHeader) -> KeptModel | None:
    """Make the kept copy; None, after saying why, where it cannot be kept."""
    nbytes = 4 * sum(prod(tensor.shape) for tensor in header.tensors)

    def fill(folder: Path) -> Filled:
        model, tokenizer, notes = read_pretrained(name, str(path.parent), "float32", gguf=path.name)
        try:
            model.save_pretrained(folder)
        except Exception as error:  # safetensors has an error of its own for a full disk
            if type(error).__name__ != "SafetensorError":
                raise
            raise OSError(reason(error)) from error
        tokenizer.save_pretrained(folder)
        return Filled(model.config.model_type, model.num_parameters(), (*notes, *_remarks(header, model)))

    try:
        place = place_for(nbytes)
        _LOG.warning(
            "dequantizing %s, this once: %.1f MB in float32 are kept in %s (pqkv models --clear removes them)",
            path.name, nbytes / 1e6, place,
        )  # fmt: skip
        source = Source(name=path.name, sha256=digest, size=header.size, kinds=_kinds(header))
        return keep(place, source, fill)
    except NotKept as error:
        _LOG.warning(
            "%s is dequantized at every load: its %.1f MB in float32 are not kept, as %s",
            path.name, nbytes / 1e6, error,
        )  # fmt: skip
        return None


def _split(path: Path, header: GGUFHeader) -> str | None:
    named, parts = _PART.search(path.name), header.settings.get("split.count", 0)
    if named or (isinstance(parts, int) and parts > 1):
        which = f"part {int(named[1])} of {int(named[2])}" if named else f"one of {parts} parts"
        return f"is {which} of a split model, which transformers does not join; use llama-gguf-split --merge"
    return None


def _unreadable(header: GGUFHeader) -> str | None:
    """What keeps the loader from reading the file, or from reading it right."""
    if missing := [package for package in _NEEDED if find_spec(package) is None]:
        words = f"the package{'s' * (len(missing) > 1)} {' and '.join(missing)}"
        return f"is read through {words}, not installed: pip install {' '.join(missing)}"
    if header.architecture not in ARCHITECTURES:
        return (
            f"is of architecture '{header.architecture}', none of those that both transformers' GGUF loader and pqkv "
            f"serve: {', '.join(ARCHITECTURES)}"
        )
    kind = str(header.settings.get("general.type", "model"))
    if kind != "model":
        return f"holds no model: its general.type is '{kind}'"
    if lacking := sorted({name for name, known in _types(header).items() if not known}):
        return (
            f"holds tensors of type {', '.join(lacking)}, which the gguf package cannot dequantize; "
            "take another quantization of the model"
        )
    if _ends_early(header):
        return "is cut off: it ends before its tensors do; download it again"
    return _dropped_rope(header)


def _dropped_rope(header: GGUFHeader) -> str | None:
    """The loader makes a plain rotary embedding of a scaled one, without a word: another model at every position."""
    key = f"{header.architecture}.rope"
    scaling = str(header.settings.get(f"{key}.scaling.type", "none"))
    scale = header.settings.get(f"{key}.scale_linear", 1)
    names = [tensor.name for tensor in header.tensors if tensor.name in _ROPE_TENSORS]
    if scaling == "none" and scale == 1 and not names:
        return None
    what = names[0] if names else f"{key}.scaling.type '{scaling}'" if scaling != "none" else f"{key}.scale_linear"
    return f"scales its rotary embedding ({what}), which transformers' GGUF loader drops; take the original weights"


def _types(header: GGUFHeader) -> dict[str, bool]:
    """Names of the file's quantization types, and whether the gguf package has a way to dequantize each."""
    import gguf
    import numpy as np

    found = {}
    for kind in {tensor.kind for tensor in header.tensors}:
        try:
            named = gguf.GGMLQuantizationType(kind)
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[named][1]), np.uint8), named)
        except (ValueError, KeyError):  # newer than the package
            found[f"number {kind}"] = False
        except NotImplementedError:  # what the gguf package raises for a type that it knows and cannot read
            found[named.name] = False
        else:
            found[named.name] = True
    return found


def _ends_early(header: GGUFHeader) -> bool:
    import gguf

    def end(tensor: GGUFTensor) -> int:
        block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
        return header.start + tensor.offset + prod(tensor.shape) // block * nbytes

    return any(end(tensor) > header.size for tensor in header.tensors)


def _kinds(header: GGUFHeader) -> dict[str, int]:
    """Quantization types by name, and how many tensors have each, most first."""
    import gguf

    counts = Counter(gguf.GGMLQuantizationType(tensor.kind).name for tensor in header.tensors)
    return dict(counts.most_common())


def _remarks(header: GGUFHeader, model: PreTrainedModel) -> tuple[str, ...]:
    """Of what the loader takes or leaves without a word."""
    held, taken = (sum(prod(tensor.shape) for tensor in header.tensors), sum(p.numel() for p in model.parameters()))
    found = [f"the file holds {held - taken:,} weights without a place in the model"] if held > taken else []
    if f"{header.architecture}.context_length" not in header.settings:
        positions = model.config.get_text_config(decoder=True).max_position_embeddings
        found.append(f"the file states no context_length: {positions}, as {model.config.model_type} has")
    window = header.settings.get(f"{header.architecture}.attention.sliding_window")
    if window and getattr(model.config.get_text_config(decoder=True), "sliding_window", None) != window:
        found.append(f"the loader drops attention.sliding_window: another model past {window} tokens")
    return tuple(found)


def _notes(path: Path, digest: str, kinds: dict[str, int], more: tuple[str, ...]) -> tuple[str, ...]:
    """For the record: what the weights were, and which file's."""
    types = ", ".join(f"{kind} ({count})" for kind, count in kinds.items())
    return (f"weights dequantized from {path.name}, whose tensors are {types}; SHA-256 {digest[:16]}", *more)
