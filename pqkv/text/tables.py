"""Tables as documents, a row each: CSV, and Parquet and Arrow, which pyarrow reads."""

from __future__ import annotations

import csv
import io
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pqkv.errors import DataError
from pqkv.text.compression import READ, open_binary
from pqkv.text.documents import brief, printable
from pqkv.text.reading import explained, read_text
from pqkv.text.rows import NAME_KEYS, TEXT_KEY, keyed_row, without_text
from pqkv.text.splits import Keyed

_limit = threading.Lock()


def csv_documents(path: Path, name: str, delimiter: str = ",") -> Iterator[Keyed]:
    """Yield one document per row of `path`, from the column that its first line calls `text`.

    Fields are quoted as RFC 4180 says. Raises `DataError` naming the line where one is not.
    """
    shown = printable(str(path))
    text = read_text(path)
    if not text.strip():
        return
    header, *rows = _csv_rows(text, delimiter, shown)
    if TEXT_KEY not in header:
        raise without_text(shown, header)
    if header.count(TEXT_KEY) > 1:
        raise DataError(f"{shown} has more than one column 'text': rename all but the one with the text")
    for number, fields in enumerate(rows, 1):
        yield keyed_row(dict(zip(header, fields, strict=True)), f"{name}:{number}")


def _csv_rows(text: str, delimiter: str, shown: str) -> list[list[str]]:
    rows: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    remedy = "a field with a comma, a quote or a line end in it must stand in double quotes, its own quotes doubled"
    try:
        with _fields_of_any_length():
            for fields in reader:
                if fields and rows and len(fields) != len(rows[0]):
                    found = f"{len(fields)} fields under {len(rows[0])} columns"
                    raise DataError(f"{shown}, line {reader.line_num} has {found}: {remedy}")
                rows += [fields] if fields else []
    except csv.Error as error:
        raise DataError(f"{shown}, line {reader.line_num} is not CSV ({brief(error)}): {remedy}") from error
    return rows


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    # The limit belongs to the whole process: taken by one reader at a time and left as it was found.
    with _limit:
        found = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(found)


def parquet_documents(path: Path, name: str) -> Iterator[Keyed | None]:
    """Yield one document per row of `path`, from its column `text`; None for a row where that is null."""
    import pyarrow.parquet as pq

    with _opened(path, "parquet") as file:
        table = pq.ParquetFile(file)
        columns = _wanted(table.schema_arrow.names, printable(str(path)))
        yield from _documents(table.iter_batches(columns=columns), path, name)


def arrow_documents(path: Path, name: str) -> Iterator[Keyed | None]:
    """Yield one document per row of `path`, an Arrow file (Feather) or stream, as `parquet_documents` does."""
    from pyarrow import ArrowInvalid, ipc

    with _opened(path, "arrow") as file:
        try:
            table = ipc.open_file(file)
            batches = (table.get_batch(number) for number in range(table.num_record_batches))
        except ArrowInvalid:  # `datasets` saves streams, under the same ending
            file.seek(0)
            batches = table = ipc.open_stream(file)
        columns = _wanted(table.schema.names, printable(str(path)))
        yield from _documents((batch.select(columns) for batch in batches), path, name)


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[IO[bytes]]:
    """`path` as a file in which one can seek; whatever pyarrow says about it becomes a `DataError`."""
    import pyarrow as pa

    shown = printable(str(path))
    with explained(path), open_binary(path) as opened:
        file = io.BytesIO(opened.read()) if path.suffix.lower() in READ else opened
        try:
            yield file
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{shown} is no {kind} file, or a damaged one ({brief(error)}): fetch it again") from error


def _wanted(names: Sequence[str], shown: str) -> Sequence[str]:
    if TEXT_KEY not in names:
        raise without_text(shown, names)
    return [column for column in (TEXT_KEY, *NAME_KEYS) if column in names]


def _documents(batches: Iterator[Any], path: Path, name: str) -> Iterator[Keyed | None]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            if row[TEXT_KEY] is None:
                yield None
            elif isinstance(row[TEXT_KEY], str):
                yield keyed_row(row, f"{name}:{number}")
            else:
                kind = batch.schema.field(TEXT_KEY).type
                raise DataError(f"{printable(str(path))}: its column 'text' holds {kind}, not text: give it strings")
