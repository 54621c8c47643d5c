"""What is there of models, what each takes on disk, and removing what pqkv keeps of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pqkv.codec.codebook_file import load_codebooks
from pqkv.errors import CodebookError, ModelError
from pqkv.keeping import cache_place
from pqkv.lm.codecs import model_of
from pqkv.lm.kept import KeptModel, kept_models, unusable
from pqkv.lm.named import NAMED, NamedModel, cached_files, installed_file

_DAMAGED = "(damaged)"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model: `there` says where its weights are, which take `weights` bytes; `copy`, `codebooks` and `codecs` are
    what pqkv keeps of it, and may be removed.
    """

    name: str
    family: str
    parameters: int
    licence: str
    there: str
    weights: tuple[Path, ...]
    copy: tuple[Path, ...]
    codebooks: tuple[Path, ...]
    codecs: tuple[Path, ...] = ()

    @property
    def kept(self) -> tuple[Path, ...]:
        """All that may be removed."""
        return (*self.copy, *self.codebooks, *self.codecs)


def inventory() -> list[Entry]:
    """The named models, then what is kept of others: copies of GGUF files by the file's digest, default codebooks by
    the name the model went by, and what is damaged.
    """
    copies, learnt = list(kept_models()), _Learnt(_by_model("codebooks", _codebooks_of), _by_model("codecs", model_of))
    entries = [_named(model, copies, learnt) for model in NAMED.values()]
    known = {model.sha256 for model in NAMED.values()}
    others = [kept for kept in copies if kept.label.source.sha256 not in known]
    entries += [_unnamed(kept, learnt) for kept in others]
    remains, damaged = tuple(unusable()), learnt.take(_DAMAGED)
    for name in sorted({*learnt.codebooks, *learnt.codecs}):
        entries.append(Entry(name, "", 0, "", "codebooks alone", (), (), *learnt.take(name)))
    if remains or any(damaged):
        entries.append(Entry(_DAMAGED, "", 0, "", "damaged or never finished", (), remains, *damaged))
    return entries


@dataclass(slots=True)
class _Learnt:
    """Files by the name of the model they were learnt for, until an entry takes them."""

    codebooks: dict[str, list[Path]]
    codecs: dict[str, list[Path]]

    def take(self, name: str) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        return tuple(self.codebooks.pop(name, [])), tuple(self.codecs.pop(name, []))


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
        paths = entry.kept
        size = size_of(paths)
        try:
            for path in paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except OSError as error:
            raise ModelError(f"cannot remove {error.filename or entry.name}: {error.strerror or error}") from error
        removed += [(entry, size)] if paths else []
    return removed


def _named(model: NamedModel, copies: list[KeptModel], learnt: _Learnt) -> Entry:
    own = tuple(kept.folder for kept in copies if kept.label.source.sha256 == model.sha256)
    held = learnt.take(model.name)
    return Entry(model.name, model.family, model.parameters, model.licence, *_place(model), own, *held)


def _unnamed(kept: KeptModel, learnt: _Learnt) -> Entry:
    label = kept.label
    there = f"kept, of {label.source.name}"
    held = learnt.take(label.source.name)
    return Entry(label.source.sha256[:12], label.family, label.parameters, "", there, (), (kept.folder,), *held)


def _place(model: NamedModel) -> tuple[str, tuple[Path, ...]]:
    """Where the weights are, in words, and their files."""
    if model.folder is not None:
        return "bundled", (model.folder / "model.safetensors",)
    if (file := installed_file(model)) is not None:
        return f"installed ({model.package})", (file,)
    if files := cached_files(model):
        return "in the hub's cache", tuple(files)
    return f"hub only ({model.command})", ()


def _by_model(kind: str, owner: Callable[[Path], str | None]) -> dict[str, list[Path]]:
    """What is kept in the folder `kind` by the name of the model it is of."""
    found: dict[str, list[Path]] = {}
    place = cache_place()
    for root in (*place.passed_over, place.folder):
        for path in sorted((root / kind).glob("*.safetensors")) if root is not None else ():
            found.setdefault(owner(path) or _DAMAGED, []).append(path)
    return found


def _codebooks_of(path: Path) -> str | None:
    """The model of a file of default codebooks; None for a damaged one."""
    try:
        return load_codebooks(path)[1].model.name
    except CodebookError:
        return None
