"""A file or a folder of the user's own as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pqkv.text.documents import printable
from pqkv.text.folders import files_below
from pqkv.text.formats import claims_text, reader_of
from pqkv.text.passed_over import PassedOver
from pqkv.text.reading import NotTextError, explained
from pqkv.text.splits import Keyed


def file_documents(path: Path, passed_over: PassedOver | None = None) -> Iterator[Keyed]:
    """Yield the documents of a file, or of every file of text below a folder, sorted by relative name.

    A plain file is one document, keyed by its name; a row of JSON, CSV, Parquet or Arrow is one, keyed by its text.
    Folders: hidden entries are left out, and so are files that are not text, unless their name says they are;
    `passed_over` gets them, and what of a file has no text. A document without text is yielded all the same.
    Raises `DataError` for what is missing, unreadable, damaged or not text.
    """
    noted = PassedOver() if passed_over is None else passed_over
    with explained(path):
        # stat, not exists(): it tells a missing file from one that may not be looked at.
        path.stat()
    if not path.is_dir():
        yield from _documents(path, path.name, noted)
        return
    for relative, file in files_below(path, _enters, noted):
        if file.name.startswith("."):
            noted.add(relative, "hidden")
            continue
        begun = False
        try:
            for keyed in _documents(file, relative, noted):
                begun = True
                yield keyed
        except NotTextError as error:
            if begun or claims_text(file.name):
                raise
            noted.add(relative, error.reason, error.detail)


def display_name(path: Path) -> str:
    """Return the last part of `path`, which is all that a record may say about it."""
    return printable(path.name if path.name not in ("", "..") else path.resolve().name or "folder")


def _enters(folder: str) -> bool:
    return not folder.startswith(".") and folder != "__pycache__"


def _documents(path: Path, name: str, noted: PassedOver) -> Iterator[Keyed]:
    read = blank = 0
    for keyed in reader_of(path)(path, printable(name)):
        read += 1
        blank += keyed is None or not keyed.document.text.strip()
        if keyed is not None:
            yield keyed
    if blank or not read:
        noted.add(name, "without text", "" if blank == read else f"{blank} of {read} rows")
