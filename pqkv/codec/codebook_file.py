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
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pqkv.codec.codebook import Codebook, CodebookSet
from pqkv.config import NBITS_RANGE, Channels, CodeMetric, Init, Scope
from pqkv.errors import CodebookError

_KEY = "pqkv-codebooks"
FORMAT_VERSION = 3
_READABLE = (1, 2, 3)  # of version 1 the errors are over energy
# what came with each version: before it, k-means began at random points, all windows at position 0 and with no token
_CAME_WITH = {
    2: ("query_errors", "calibration.bos", "calibration.special_tokens"),
    3: ("init", "calibration.positions"),
}
_PARTS = ("centroids", "channels", "weights", "rotation")
_NOT_ORTHOGONAL = 1e-4  # rounding to float32 leaves 1e-6


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelIdentity(_Strict):
    """The model the codebooks were trained for."""

    name: str
    family: str
    config: str = Field(description="digest of its configuration")
    weights: str = Field(description="digest of its attention weights")


class Calibration(_Strict):
    """The text the vectors came from; `documents` are digests, so that overlap with a test text is found. `bos` is the
    token every window began with; files of version 1 knew none, and took what spells a control token for one.
    `positions` is how far windows reach: they stand at several places up to it, None (before version 3) all at 0.
    """

    name: str
    split: str
    sha256: str
    tokens: int
    context: int
    positions: int | None = None
    documents: tuple[str, ...]
    bos: int | None = None
    special_tokens: Literal["parsed", "text"] = "parsed"

    @property
    def reach(self) -> int:
        """Positions from 0 on that the keys came from."""
        return self.positions or self.context


class CodebookHeader(_Strict):
    """Everything a codebook file says about itself."""

    version: int = FORMAT_VERSION
    model: ModelIdentity
    num_layers: int = Field(ge=1)
    num_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    num_subspaces: int = Field(ge=1)
    nbits: int = Field(ge=NBITS_RANGE[0], le=NBITS_RANGE[1])
    scope: Scope
    channels: Channels
    metric: CodeMetric
    rope: str = Field("post", description="keys were taken after (post) rotary embedding")
    calibration: Calibration
    samples: int
    init: Init = Field("random", description="where k-means began")
    iterations: int
    seed: int
    errors: tuple[tuple[float, float], ...] = Field(
        description="held-out squared error of (keys, values) per layer, over squared distances to the mean"
    )
    query_errors: tuple[float, ...] = Field((), description="that of keys in the metric of the queries")
    versions: dict[str, str]


def save_codebooks(path: Path, books: CodebookSet, header: CodebookHeader) -> None:
    """Write `books` atomically; raises `CodebookError` when the place cannot be written."""
    tensors = _tensors(books, header.scope)
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
        checksum = content.pop("checksum")
        header = CodebookHeader(**content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ValidationError) as error:
        raise CodebookError(f"{path}: the header is damaged or from another version; train it again") from error
    if header.version not in _READABLE:
        raise CodebookError(
            f"{path}: format version {header.version}, this pqkv reads {' and '.join(map(str, _READABLE))}; train it "
            "again, or install a newer pqkv"
        )
    if checksum != tensors_checksum(content, tensors):
        raise CodebookError(f"{path}: checksum mismatch, the file is damaged; train it again or copy it once more")
    return _books(path, header, tensors), header


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


def _tensors(books: CodebookSet, scope: Scope) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for side, layers in (("keys", books.keys), ("values", books.values)):
        for i, book in enumerate(layers[:1] if scope == "global" else layers):  # one for all layers is stored once
            for part in _PARTS:
                tensor = getattr(book, part)
                if tensor is not None:
                    named[f"{_prefix(i, scope)}.{side}.{part}"] = tensor.cpu().contiguous().clone()
    return named


def _prefix(layer: int, scope: Scope) -> str:
    return "global" if scope == "global" else f"layers.{layer}"


def tensors_checksum(content: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of what a file says and of the tensors it holds."""
    hashed = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return hashed.hexdigest()


def _books(path: Path, header: CodebookHeader, tensors: dict[str, Tensor]) -> CodebookSet:
    if header.head_dim % header.num_subspaces:
        raise CodebookError(f"{path}: {header.num_subspaces} subspaces do not divide head_dim {header.head_dim}")
    sides = []
    for side in ("keys", "values"):
        count = 1 if header.scope == "global" else header.num_layers
        layers = [_book(path, header, f"{_prefix(i, header.scope)}.{side}", tensors) for i in range(count)]
        sides.append(tuple(layers * header.num_layers if header.scope == "global" else layers))
    return CodebookSet(sides[0], sides[1])


def _book(path: Path, header: CodebookHeader, name: str, tensors: dict[str, Tensor]) -> Codebook:
    heads, D = (header.num_kv_heads if header.scope == "head" else 1), header.head_dim
    shapes = {
        "centroids": (heads, header.num_subspaces, 2**header.nbits, D // header.num_subspaces),
        "channels": (heads, D),
        "weights": (heads, D),
        "rotation": (heads, D, D),
    }
    parts: dict[str, Tensor | None] = {}
    for part, shape in shapes.items():
        tensor = parts[part] = tensors.get(f"{name}.{part}")
        if tensor is None:
            if part == "centroids":
                raise CodebookError(f"{path}: {name}.{part} is missing; train it again")
            continue
        dtype = torch.int64 if part == "channels" else torch.float32
        if tuple(tensor.shape) != shape:
            raise CodebookError(f"{path}: {name}.{part} has shape {tuple(tensor.shape)}, its header says {shape}")
        if tensor.dtype != dtype:
            raise CodebookError(f"{path}: {name}.{part} is {tensor.dtype}, not {dtype}")
        if not torch.isfinite(tensor).all():
            raise CodebookError(f"{path}: {name}.{part} holds NaN or infinity; train it again")
    channels = parts["channels"]
    if channels is not None and not torch.equal(channels.sort(-1).values, torch.arange(D).expand(heads, D)):
        raise CodebookError(f"{path}: {name}.channels is not an order of the {D} channels; train it again")
    rotation = parts["rotation"]
    if (rotation is None) == (header.channels == "opq"):
        raise CodebookError(
            f"{path}: {name} has {'no' if rotation is None else 'a'} rotation, its header says channels "
            f"{header.channels}; train it again"
        )
    if rotation is not None and float((rotation @ rotation.mT - torch.eye(D)).abs().max()) > _NOT_ORTHOGONAL:
        raise CodebookError(f"{path}: {name}.rotation is not orthogonal; train it again")
    centroids = parts["centroids"]
    assert centroids is not None
    return Codebook(centroids, channels, parts["weights"], rotation)
