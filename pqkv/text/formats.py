"""What a file holds by its name: rows, plain text, or a format that is refused rather than read as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from pqkv.text.compression import READ, plain_name
from pqkv.text.documents import Document, printable
from pqkv.text.reading import NotTextError, read_text
from pqkv.text.rows import json_documents, json_lines_documents
from pqkv.text.splits import Keyed
from pqkv.text.tables import arrow_documents, csv_documents, parquet_documents

Reader = Callable[[Path, str], Iterator[Keyed | None]]

ROWS: Mapping[str, Reader] = {
    ".jsonl": json_lines_documents,
    ".ndjson": json_lines_documents,
    ".json": json_documents,
    ".csv": csv_documents,
    ".tsv": partial(csv_documents, delimiter="\t"),
    ".parquet": parquet_documents,
    ".arrow": arrow_documents,
    ".feather": arrow_documents,
}
# Where one of these is no text after all, a folder is not read without it.
_CLAIM = (".txt", ".md", ".text", ".jsonl", ".ndjson", ".parquet")

_ARCHIVES = (".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar")
_PACKED = (".lz4", ".br", ".sz", ".snappy", ".z")
_PAGES = (".pdf", ".rtf", ".doc", ".docx", ".odt", ".epub", ".ppt", ".pptx", ".xls", ".xlsx", ".ods", ".ipynb")


def reader_of(path: Path) -> Reader:
    """Return what reads `path`; anything of no known format is one document of plain text, source and markup too.

    Raises `NotTextError` for a format whose content is known not to be text as it stands.
    """
    suffix = Path(plain_name(path.name)).suffix
    shown = printable(str(path))
    if suffix in _ARCHIVES:
        raise NotTextError(f"{shown} is an archive: unpack it and give the folder", "an archive")
    if suffix in _PACKED:
        raise NotTextError(
            f"{shown} is compressed in a way that is not read: give it unpacked, or as {', '.join(READ)}", "compressed"
        )
    if suffix in _PAGES:
        raise NotTextError(f"{shown} is no plain text ({suffix}): save it as .txt, or a table as .csv", "no plain text")
    return ROWS.get(suffix, _plain_text)


def claims_text(name: str) -> bool:
    """Whether a file of this name must hold text: by its format, or as compressed JSON, which shards of corpora are."""
    plain = plain_name(name)
    return plain.endswith(_CLAIM) or (plain.endswith(".json") and plain != name.lower())


def _plain_text(path: Path, name: str) -> Iterator[Keyed]:
    yield Keyed(Document(name, read_text(path)), key=name)
