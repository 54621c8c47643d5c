"""Default codebooks: trained once per model and setting, kept in the user's cache folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pqkv.codec import CodebookSet
from pqkv.codec.codebook_file import CodebookHeader, check_writable, load_codebooks, save_codebooks
from pqkv.config import TrainConfig, digest_of
from pqkv.errors import CodebookError
from pqkv.keeping import cache_place
from pqkv.lm.calibrate import Calibrated, Progress
from pqkv.lm.model import LanguageModel
from pqkv.lm.train import check_codebooks, train

_RECIPE = 4  # raised when training changes, so that codebooks of an older recipe are not taken for new ones


def cache_folder() -> Path:
    """Where default codebooks are kept (`keeping.cache_place`). Raises `CodebookError` where nothing can be written."""
    folder = cache_place().folder
    if folder is None:
        raise CodebookError("no folder can be written to keep codebooks in; set PQKV_CACHE to one that can")
    return folder


def default_codebooks(
    lm: LanguageModel,
    config: TrainConfig,
    progress: Progress | None = None,
    calibrated: Callable[[], Calibrated] | None = None,
) -> tuple[CodebookSet, CodebookHeader, Path]:
    """Load the codebooks of this model and training from where they are kept (`keeping.cache_place`), training them
    first where they are not there yet, on what `calibrated` returns if it is given. A damaged file is trained again.
    Raises `CodebookError`, before the training, where nothing can be written.
    """
    if found := kept_codebooks(lm, config):
        return found
    path = cache_folder() / _name(lm, config)
    check_writable(path)
    books, header = train(lm, config, progress, calibrated() if calibrated else None)
    save_codebooks(path, books, header)
    return books, header, path


def kept_codebooks(lm: LanguageModel, config: TrainConfig) -> tuple[CodebookSet, CodebookHeader, Path] | None:
    """The codebooks of this model and training, from where they are kept; None if they are not. A damaged file is
    removed.
    """
    place, name = cache_place(), _name(lm, config)
    for folder in (*place.passed_over, place.folder):
        if folder is None or not os.access(path := folder / name, os.R_OK):
            continue
        try:
            books, header = load_codebooks(path)
            check_codebooks(header, lm, path.name)
            return books, header, path
        except CodebookError:
            with suppress(OSError):  # where it cannot be removed, another is kept elsewhere
                path.unlink()
    return None


def _name(lm: LanguageModel, config: TrainConfig) -> Path:
    described = config.model_dump(mode="json", exclude={"model", "device", "device_map", "rope", "rope_factor"})
    described["leave_out"] = config.left_out()  # said or meant
    key = digest_of([_RECIPE, described, lm.identity()])
    return Path("codebooks") / f"{key}.safetensors"
