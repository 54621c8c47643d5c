"""What is there of models, what each takes on disk, and removing what pqkv keeps of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pqkv.codec.codebook_file import load_codebooks
from pqkv.errors import CodebookError, ModelError
from pqkv.keeping import cache_place
from pqkv.lm.kept import KeptModel, kept_models, unusable
from pqkv.lm.named import NAMED, NamedModel, cached_files, installed_file

_DAMAGED = "(damaged)"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: `there` says where its weights are, which take `weights` bytes; `copy` and `codebooks` are what pqkv
    keeps of it, and may be removed.
    """

    name: str
    family: str
    parameters: int
    licence: str
    there: str
    weights: tuple[Path, ...]
    copy: tuple[Path, ...]
    codebooks: tuple[Path, ...]


def inventory() -> list[Entry]:
    """The named models, then what is kept of others: copies of GGUF files by the file's digest, default codebooks by
    the name the model went by, and what is damaged.
    """
    copies, books = list(kept_models()), _default_codebooks()
    entries = [_named(model, copies, books.pop(model.name, [])) for model in NAMED.values()]
    known = {model.sha256 for model in NAMED.values()}
    others = [kept for kept in copies if kept.label.source.sha256 not in known]
    entries += [_unnamed(kept, books.pop(kept.label.source.name, [])) for kept in others]
    remains, damaged = tuple(unusable()), tuple(books.pop(_DAMAGED, []))
    for name, paths in sorted(books.items()):
        entries.append(Entry(name, "", 0, "", "codebooks alone", (), (), tuple(paths)))
    if remains or damaged:
        entries.append(Entry(_DAMAGED, "", 0, "", "damaged or never finished", (), remains, damaged))
    return entries


def size_of(paths: tuple[Path, ...]) -> int:
    """Bytes of files, and of the files in folders."""
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else (path,))]
    return sum(file.stat().st_size for file in files if file.is_file())


def clear(name: str | None) -> list[tuple[Entry, int]]:
    """Remove what pqkv keeps of the model called `name` as `inventory` does, of all without a name; what was removed,
    and its bytes. What it did not make (packages, the hub's cache) stays.

    Raises `ModelError` for a name that is not there and for what cannot be removed.
    """
    entries = inventory()
    chosen = [entry for entry in entries if name in (None, entry.name)]
    if not chosen:
        raise ModelError(f"pqkv keeps nothing of '{name}'; known: {', '.join(entry.name for entry in entries)}")
    removed = []
    for entry in chosen:
        paths = (*entry.copy, *entry.codebooks)
        size = size_of(paths)
        try:
            for path in paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            raise ModelError(f"cannot remove {error.filename or entry.name}: {error.strerror or error}") from error
        removed += [(entry, size)] if paths else []
    return removed


def _named(model: NamedModel, copies: list[KeptModel], books: list[Path]) -> Entry:
    own = tuple(kept.folder for kept in copies if kept.label.source.sha256 == model.sha256)
    return Entry(model.name, model.family, model.parameters, model.licence, *_place(model), own, tuple(books))


def _unnamed(kept: KeptModel, books: list[Path]) -> Entry:
    label = kept.label
    there = f"kept, of {label.source.name}"
    return Entry(label.source.sha256[:12], label.family, label.parameters, "", there, (), (kept.folder,), tuple(books))


def _place(model: NamedModel) -> tuple[str, tuple[Path, ...]]:
    """Where the weights are, in words, and their files."""
    if model.folder is not None:
        return "bundled", (model.folder / "model.safetensors",)
    if (file := installed_file(model)) is not None:
        return f"installed ({model.package})", (file,)
    if files := cached_files(model):
        return "in the hub's cache", tuple(files)
    return f"hub only ({model.command})", ()


def _default_codebooks() -> dict[str, list[Path]]:
    """Default codebooks by the name of the model they were trained for."""
    found: dict[str, list[Path]] = {}
    for path in _codebook_files():
        try:
            name = load_codebooks(path)[1].model.name
        except CodebookError:
            name = _DAMAGED
        found.setdefault(name, []).append(path)
    return found


def _codebook_files() -> Iterator[Path]:
    place = cache_place()
    for root in (*place.passed_over, place.folder):
        if root is not None:
            yield from sorted((root / "codebooks").glob("*.safetensors"))
