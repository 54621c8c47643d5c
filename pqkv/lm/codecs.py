"""Codecs of a model: what each side learns from calibration text, learnt once and kept in the user's cache folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pqkv.allocator import give_back
from pqkv.codec.catalog import CodecSpec, Learning
from pqkv.codec.codebook_file import Calibration, tensors_checksum
from pqkv.codec.interface import Codec, State
from pqkv.config import CodecCalibration, digest_of
from pqkv.errors import CodebookError
from pqkv.keeping import cache_place
from pqkv.lm.calibrate import Calibrated, Progress, calibrate_codecs
from pqkv.lm.model import LanguageModel

_RECIPE = 2  # as a codec's own `recipe`, of all that learn: raised when samples change
_KEY = "pqkv-codec"


@dataclass(frozen=True, slots=True)
class LearntCodec:
    """A codec that is ready, with the text that it learnt from (None for one that learns nothing)."""

    spec: CodecSpec
    codec: Codec
    calibration: Calibration | None
    digest: str


def learnt_codecs(
    lm: LanguageModel,
    specs: Sequence[CodecSpec],
    config: CodecCalibration,
    progress: Progress | None = None,
) -> list[LearntCodec]:
    """Every one of `specs` made for `lm`. Sides are learnt and kept apart: two codecs that code keys alike learn that
    once. The calibration text is run through the model only if something is not kept yet. Raises `CodebookError` where
    nothing can be written.
    """
    report = progress or (lambda stage, done, total: None)
    captured: dict[bool, Calibrated] = {}

    def samples(learning: Learning) -> Calibrated:
        if learning.gradients not in captured:
            captured[learning.gradients] = calibrate_codecs(lm, config, progress, gradients=learning.gradients)
        return captured[learning.gradients]

    found = []
    for number, spec in enumerate(specs):
        report("learn codecs", number, len(specs))
        state: dict[str, Tensor] = {}
        text: Calibration | None = None
        for learning in spec.learnings():
            part, seen = _kept(lm, learning, config, samples)
            state |= {f"{learning.prefix}.{name}": tensor for name, tensor in part.items()}
            text = seen
        key = digest_of([_recipe(spec.learnings()), spec.config(), _calibration_key(lm, config) if text else None])
        found.append(LearntCodec(spec, spec.make(state), text, key))
    report("learn codecs", len(specs), len(specs))
    return found


def _recipe(learnings: Sequence[Learning]) -> int | list[int]:
    """What a digest says of how parts learn; a codec whose recipe never changed keeps the digest that it had."""
    own = [learning.part.kind.recipe for learning in learnings if learning.part.kind.recipe]
    return [_RECIPE, *own] if own else _RECIPE


def _calibration_key(lm: LanguageModel, config: CodecCalibration) -> list[object]:
    return [config.model_dump(mode="json"), lm.identity()]


def _kept(
    lm: LanguageModel, learning: Learning, config: CodecCalibration, samples: Callable[[Learning], Calibrated]
) -> tuple[State, Calibration]:
    """What is kept of a part, or learnt now and kept."""
    key = digest_of([_recipe([learning]), learning.config(), _calibration_key(lm, config)])
    folder = cache_place().folder
    if folder is None:
        raise CodebookError("no folder can be written to keep codecs in; set PQKV_CACHE to one that can")
    path = folder / "codecs" / f"{key}.safetensors"
    known = _read(path)
    if known is not None:
        return known
    calibrated = samples(learning)
    _write(path, learning.learn(calibrated.samples, config.seed), calibrated.text, lm)
    give_back()
    written = _read(path)  # what is used is what is kept, today as tomorrow
    if written is None:
        raise CodebookError(f"cannot read {path}, which was written just now; check the disk")
    return written


def _write(path: Path, state: State, text: Calibration, lm: LanguageModel) -> None:
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in state.items()}
    content: dict[str, Any] = {"calibration": text.model_dump(mode="json"), "model": lm.identity()}
    content["checksum"] = tensors_checksum(content, tensors)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(save(tensors, metadata={_KEY: json.dumps(content, sort_keys=True)}))
        temporary.replace(path)
    except OSError as error:
        raise CodebookError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> tuple[State, Calibration] | None:
    """What a file keeps; None where there is none, or a damaged one, which is learnt again."""
    found = _content(path)
    if found is None:
        return None
    content, tensors = found
    try:
        return tensors, Calibration(**content["calibration"])
    except (KeyError, TypeError, ValidationError):
        return None


def model_of(path: Path) -> str | None:
    """The name of the model that a kept file was learnt for; None for a damaged file."""
    found = _content(path)
    try:
        return None if found is None else str(found[0]["model"]["name"])
    except (KeyError, TypeError):
        return None


def _content(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """What a file says and holds, if its checksum is right."""
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            content = json.loads((file.metadata() or {})[_KEY])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
        checksum = content.pop("checksum")
        return (content, tensors) if checksum == tensors_checksum(content, tensors) else None
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError):
        return None
