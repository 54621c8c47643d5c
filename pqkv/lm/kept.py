"""Dequantized models that pqkv keeps: transformers folders below the cache folder, named by the digest of the GGUF file
they were made from, with a digest of every file, so that a damaged copy is noticed before it is used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from pqkv.keeping import cache_place

_LOG = logging.getLogger("pqkv")
_FOLDER, _LABEL = "models", "kept.json"
_MAKERS = ("transformers", "gguf")  # another version may dequantize or split words otherwise


class Source(BaseModel):
    """The GGUF file a kept model was made from: name, SHA-256, bytes, and how many tensors have which quantization."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str
    size: int
    kinds: dict[str, int]


class Label(BaseModel):
    """What lies in the folder of a kept model: from which file, made by what, and the digests of its own files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Source
    family: str
    parameters: int
    notes: tuple[str, ...]
    makers: dict[str, str]
    files: dict[str, str]


class Filled(NamedTuple):
    """What is to be remembered of a model besides its files."""

    family: str
    parameters: int
    notes: tuple[str, ...]


class NotKept(Exception):
    """There is no room, or no place, for a kept copy; the message goes on after "not kept:"."""


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A kept model as its label says; whether its files are what they were is `is_sound`'s to tell."""

    folder: Path
    label: Label

    def is_sound(self) -> bool:
        """Whether every file has the digest that was written down when it was made."""
        try:
            return all(file_digest(self.folder / name) == digest for name, digest in self.label.files.items())
        except OSError:
            return False

    def nbytes(self) -> int:
        """What it takes on disk."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def kept_models() -> Iterator[KeptModel]:
    """All that are kept, where pqkv writes and where others have put some."""
    place = cache_place()
    for root in (*place.passed_over, place.folder):
        for folder in sorted((root / _FOLDER).glob("[0-9a-f]*")) if root else ():
            try:
                yield KeptModel(folder, Label.model_validate_json((folder / _LABEL).read_text(encoding="utf-8")))
            except (OSError, UnicodeDecodeError, ValidationError):
                continue


def may_be_kept(size: int) -> bool:
    """Whether a copy of any file of `size` bytes is kept: if not, there is nothing to compare a digest with."""
    return any(kept.label.source.size == size for kept in kept_models())


def find_kept(name: str, sha256: str) -> KeptModel | None:
    """The kept copy of the GGUF file with this digest, checked. One that is damaged is said to be, and passed over."""
    for kept in _copies(sha256):
        if kept.is_sound():
            return kept
        _LOG.warning("the kept copy of %s is damaged, and made again", name)
    return None


def place_for(nbytes: int) -> Path:
    """The folder for kept models. Raises `NotKept` where there is none, and where `nbytes` more would take over half of
    what is free.
    """
    folder = cache_place().folder
    if folder is None:
        raise NotKept("no folder can be written (set PQKV_CACHE to one that can)")
    place = folder / _FOLDER
    try:
        place.mkdir(exist_ok=True)
        free = shutil.disk_usage(place).free
    except OSError as error:
        raise NotKept(f"{place} cannot be written ({error.strerror})") from error
    if free < 2 * nbytes:
        raise NotKept(f"they would take over half of the {free / 1e9:.1f} GB that are free in {place}")
    return place


def keep(place: Path, source: Source, fill: Callable[[Path], Filled]) -> KeptModel:
    """Keep under `place` what `fill` writes into a folder, which appears there at once and complete.

    Raises `NotKept` where it cannot be written, and what `fill` raises besides `OSError`.
    """
    final = place / source.sha256[:16]
    made = place / f".{final.name}.{os.getpid()}.tmp"
    try:
        made.mkdir()
        filled = fill(made)
        for path in made.iterdir():
            path.chmod(made.stat().st_mode & 0o666)  # safetensors writes files for this user alone
        files = {path.name: file_digest(path) for path in sorted(made.iterdir())}
        label = Label(source=source, makers=_makers(), files=files, **filled._asdict())
        (made / _LABEL).write_text(label.model_dump_json(indent=1), encoding="utf-8")
        if final.exists():
            for other in _copies(source.sha256):
                if other.is_sound():  # another process was first
                    return other
            final.rename(made.with_suffix(".old.tmp"))  # a folder cannot be renamed onto a full one
        made.rename(final)
    except OSError as error:
        raise NotKept(f"{final} cannot be written ({error.strerror or error})") from error
    finally:  # after an interrupt too
        for path in (made, made.with_suffix(".old.tmp")):
            shutil.rmtree(path, ignore_errors=True)
    return KeptModel(final, label)


def unusable() -> list[Path]:
    """Folders that hold no kept model: of copies that a killed process began, and of those with a damaged label."""
    place, kept = cache_place(), {model.folder for model in kept_models()}
    roots = [root / _FOLDER for root in (*place.passed_over, place.folder) if root and (root / _FOLDER).is_dir()]
    return [path for root in roots for path in sorted(root.iterdir()) if path.is_dir() and path not in kept]


def _copies(sha256: str) -> Iterator[KeptModel]:
    """Those of the file with this digest, made by what is installed now, unchecked."""
    for kept in kept_models():
        if kept.label.source.sha256 == sha256 and _makers().items() <= kept.label.makers.items():
            yield kept


def _makers() -> dict[str, str]:
    """Versions of what is installed: a kept copy needs no `gguf`."""
    found = {}
    for name in _MAKERS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
