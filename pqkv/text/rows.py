"""Files of rows: one document a line (JSON lines) or a row (parquet), under the key `text`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pqkv.errors import DataError
from pqkv.text.documents import Document, brief, printable
from pqkv.text.reading import decode, explained, read_lines
from pqkv.text.splits import Keyed

TEXT_KEY = "text"
NAME_KEYS = ("source", "name", "title")


def json_lines_documents(path: Path, name: str) -> Iterator[Keyed]:
    """Yield one document per line of `path`; blank lines are passed over, any other line must hold a text."""
    for number, data in read_lines(path):
        where = f"{printable(str(path))}, line {number}"
        line = decode(data, where)
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not JSON ({brief(error)}): every line must be one JSON object") from error
        if not isinstance(row, dict) or not isinstance(row.get(TEXT_KEY), str):
            raise DataError(f'{where} has no text: every line must be an object such as {{"text": "..."}}')
        try:
            row[TEXT_KEY].encode()
        except UnicodeEncodeError as error:
            # JSON can spell half of a surrogate pair, which is no character and cannot be tokenized.
            raise DataError(
                f"{where} holds an unpaired surrogate (\\ud800 to \\udfff): write whole characters"
            ) from error
        yield _keyed(row, f"{name}:{number}")


def parquet_documents(path: Path, name: str) -> Iterator[Keyed]:
    """Yield one document per row of `path`, from its column `text`; rows where that is null are passed over."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shown = printable(str(path))
    with explained(path), path.open("rb") as file:
        try:
            table = pq.ParquetFile(file)
            columns = table.schema_arrow.names
            if TEXT_KEY not in columns:
                has = printable(", ".join(columns)) or "none"
                raise DataError(f"{shown} has no column 'text' (its columns: {has}): rename the one with the text")
            wanted = [column for column in (TEXT_KEY, *NAME_KEYS) if column in columns]
            number = 0
            for batch in table.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    if row[TEXT_KEY] is None:
                        continue
                    if not isinstance(row[TEXT_KEY], str):
                        kind = table.schema_arrow.field(TEXT_KEY).type
                        raise DataError(f"{shown}: its column 'text' holds {kind}, not text: give it strings")
                    yield _keyed(row, f"{name}:{number}")
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{shown} is no parquet file, or a damaged one ({brief(error)}): fetch it again") from error


def _keyed(row: Mapping[str, Any], fallback: str) -> Keyed:
    names = (row.get(key) for key in NAME_KEYS)
    name = next((value for value in names if isinstance(value, str) and value), fallback)
    # Rows have no name that is theirs alone, so the text itself decides the split: copies stay together.
    return Keyed(Document(printable(name), row[TEXT_KEY]), key=row[TEXT_KEY])
