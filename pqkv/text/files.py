"""A file or a folder of the user's own as documents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pqkv.text.documents import Document, printable
from pqkv.text.folders import files_below
from pqkv.text.reading import NotTextError, explained, read_text
from pqkv.text.rows import json_lines_documents, parquet_documents
from pqkv.text.splits import Keyed

# Shards of web corpora are JSON lines that call themselves .json.gz; a bare .json is more often one object.
JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".json.gz", ".json.xz")
PLAIN_TEXT = (".txt", ".md", ".text")


def file_documents(path: Path) -> Iterator[Keyed]:
    """Yield the documents of a file, or of every file of text below a folder, sorted by relative name.

    A plain file is one document, keyed by its name; a row of JSON lines or parquet is one, keyed by its text.
    Folders: hidden entries are passed over, and so are files that are not text, unless their name says they are.
    Raises `DataError` for what is missing, unreadable, damaged or not text.
    """
    with explained(path):
        # stat, not exists(): it tells a missing file from one that may not be looked at.
        path.stat()
    if not path.is_dir():
        yield from _documents(path, path.name)
        return
    for relative, file in files_below(path, _enters):
        if file.name.startswith("."):
            continue
        try:
            yield from _documents(file, relative)
        except NotTextError:
            if file.name.lower().endswith((*JSON_LINES, *PLAIN_TEXT)):
                raise


def display_name(path: Path) -> str:
    """Return the last part of `path`, which is all that a record may say about it."""
    return printable(path.name if path.name not in ("", "..") else path.resolve().name or "folder")


def _enters(folder: str) -> bool:
    return not folder.startswith(".") and folder != "__pycache__"


def _documents(path: Path, name: str) -> Iterator[Keyed]:
    name = printable(name)
    lowered = path.name.lower()
    if lowered.endswith(JSON_LINES):
        yield from json_lines_documents(path, name)
    elif lowered.endswith(".parquet"):
        yield from parquet_documents(path, name)
    else:
        yield Keyed(Document(name, read_text(path)), key=name)
