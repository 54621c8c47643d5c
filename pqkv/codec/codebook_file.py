"""The codebook file: one safetensors file, centroids and the provenance that makes them trustworthy.

Its metadata holds one JSON header (one key only: safetensors does not order several, and the same training must give
the same bytes) with a SHA-256 over header and tensors, so that a flipped bit anywhere is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pqkv.codec.codebook import CodebookSet
from pqkv.codec.codebook_header import READABLE, Calibration, CodebookHeader, ModelIdentity
from pqkv.codec.codebook_parts import books_of, tensors_of
from pqkv.errors import CodebookError

__all__ = [
    "Calibration", "CodebookHeader", "ModelIdentity", "check_writable", "load_codebooks", "save_codebooks",
    "tensors_checksum",
]  # fmt: skip

_KEY = "pqkv-codebooks"
# what came with each version: before it, k-means began at random points, all windows at position 0 and with no token
_CAME_WITH = {
    2: ("query_errors", "calibration.bos", "calibration.special_tokens"),
    3: ("init", "calibration.positions"),
    4: ("keys", "values", "calibration.leave_out"),
}


def save_codebooks(path: Path, books: CodebookSet, header: CodebookHeader) -> None:
    """Write `books` atomically; raises `CodebookError` when the place cannot be written."""
    tensors = tensors_of(books, header)
    content = _content(header)
    content["checksum"] = tensors_checksum(content, tensors)
    data = save(tensors, metadata={_KEY: json.dumps(content, sort_keys=True)})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise CodebookError(f"cannot write {path}: {error.strerror or error}") from error
    finally:  # after an interrupt too
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise `CodebookError` if a file cannot be made at `path`: better before the training than after it."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.is_dir():
            raise CodebookError(f"{path} is a folder; give the name of a file in it")
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise CodebookError(f"cannot write {path}: {error.strerror or error}") from error


def load_codebooks(path: Path) -> tuple[CodebookSet, CodebookHeader]:
    """Read a codebook file and check all of it: format, checksum, shapes, dtype, finiteness.

    Raises `CodebookError` that says which check failed.
    """
    if not _is_file(path):
        raise CodebookError(f"no codebook file at {path}; make one with pqkv train-codebooks -o {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            # cloned: a tensor of the mapped file would change with the file after it was checked
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise CodebookError(f"{path} is not a readable safetensors file ({error}); train it again") from error
    if _KEY not in metadata:
        raise CodebookError(f"{path} is a safetensors file but holds no pqkv codebooks")
    try:
        content: dict[str, Any] = json.loads(metadata[_KEY])
        _check_version(path, content.get("version"))
        checksum = content.pop("checksum")
        header = CodebookHeader(**content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ValidationError) as error:
        raise CodebookError(f"{path}: the header is damaged or from another version; train it again") from error
    if checksum != tensors_checksum(content, tensors):
        raise CodebookError(f"{path}: checksum mismatch, the file is damaged; train it again or copy it once more")
    return books_of(path, header, tensors), header


def _check_version(path: Path, version: object) -> None:
    """Raise `CodebookError` for a version that is not read: before anything else, as its header may hold anything."""
    if isinstance(version, int) and version not in READABLE:
        raise CodebookError(
            f"{path}: format version {version}, this pqkv reads {' and '.join(map(str, READABLE))}; train it again, or "
            "install a newer pqkv"
        )


def _content(header: CodebookHeader) -> dict[str, Any]:
    """The header as JSON values; one of an older version as that wrote it, byte for byte."""
    content = header.model_dump(mode="json")
    for version, keys in _CAME_WITH.items():
        for key in keys if header.version < version else ():
            *inside, last = key.split(".")
            del (content[inside[0]] if inside else content)[last]
    return content


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than names can be
        return False


def tensors_checksum(content: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of what a file says and of the tensors it holds."""
    hashed = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return hashed.hexdigest()
