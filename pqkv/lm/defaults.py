"""Default codebooks: trained once per model and setting, kept in the user's cache folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pqkv.codec import CodebookSet
from pqkv.codec.codebook_file import CodebookHeader, load_codebooks, save_codebooks
from pqkv.config import TrainConfig, digest_of
from pqkv.errors import CodebookError
from pqkv.lm.model import LanguageModel
from pqkv.lm.train import Calibrated, Progress, check_codebooks, train

_RECIPE = 2  # raised when training changes, so that codebooks of an older recipe are not taken for new ones


def cache_folder() -> Path:
    """`$PQKV_CACHE`, else `$XDG_CACHE_HOME/pqkv`, else `~/.cache/pqkv`."""
    if folder := os.environ.get("PQKV_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pqkv"


def default_codebooks(
    lm: LanguageModel,
    config: TrainConfig,
    progress: Progress | None = None,
    calibrated: Callable[[], Calibrated] | None = None,
) -> tuple[CodebookSet, CodebookHeader, Path]:
    """Load the codebooks of this model and training, training them first where they are not there yet, on what
    `calibrated` returns if it is given. A damaged file in the cache folder is trained again.
    """
    key = digest_of([_RECIPE, config.model_dump(mode="json", exclude={"model", "device", "device_map"}), lm.identity()])
    path = cache_folder() / "codebooks" / f"{key}.safetensors"
    if path.exists():
        try:
            books, header = load_codebooks(path)
            check_codebooks(header, lm, path.name)
            return books, header, path
        except CodebookError:
            path.unlink()
    books, header = train(lm, config, progress, calibrated() if calibrated else None)
    save_codebooks(path, books, header)
    return books, header, path
