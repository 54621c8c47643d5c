"""Rows as documents: what every format of rows has in common, and the rows of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pqkv.errors import DataError
from pqkv.text.documents import Document, brief, printable
from pqkv.text.reading import NotTextError, decode, read_lines, read_text
from pqkv.text.splits import Keyed

TEXT_KEY = "text"
NAME_KEYS = ("source", "name", "title")


def keyed_row(row: Mapping[str, Any], fallback: str) -> Keyed:
    """The document of a row that holds a text, named by its first name of `NAME_KEYS` or else `fallback`."""
    names = (row.get(key) for key in NAME_KEYS)
    name = next((value for value in names if isinstance(value, str) and value), fallback)
    # Rows have no name that is theirs alone, so the text itself decides the split: copies stay together.
    return Keyed(Document(printable(name), row[TEXT_KEY]), key=row[TEXT_KEY])


def without_text(shown: str, columns: Sequence[str]) -> NotTextError:
    """The error of a table that has columns, and none of them is `text`."""
    has = printable(", ".join(columns)[:200]) or "none"
    return NotTextError(
        f"{shown} has no column 'text' (its columns: {has}): rename the one with the text",
        "no column 'text'",
        has,
    )


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
        yield _json_row(row, where, f"{name}:{number}")


def json_documents(path: Path, name: str) -> Iterator[Keyed]:
    """Yield one document per object: of an array, of lines as in JSON lines, or the only one that `path` holds.

    Raises `NotTextError` for what is no such thing from its first row on, and `DataError` for what begins as one.
    """
    opening = _first_line(path)
    if opening and not opening.startswith("[") and _is_json(opening):
        yield from json_lines_documents(path, name)
    elif opening:
        yield from _whole(path, name, is_array=opening.startswith("["))


def _first_line(path: Path) -> str:
    for number, data in read_lines(path):
        if line := decode(data, f"{printable(str(path))}, line {number}").strip():
            return line
    return ""


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _whole(path: Path, name: str, *, is_array: bool) -> Iterator[Keyed]:
    shown = printable(str(path))
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        message = f"{shown} is not JSON ({brief(error)}): give an array of objects with a text, or one object a line"
        # Settings with comments and templates are called .json too; an array is data, and here it is damaged.
        raise (DataError(message) if is_array else NotTextError(message, "not JSON")) from error
    rows = content if isinstance(content, list) else [content]
    for number, row in enumerate(rows, 1):
        yield _json_row(row, f"{shown}, object {number}", f"{name}:{number}")


def _json_row(row: object, where: str, fallback: str) -> Keyed:
    if not isinstance(row, dict) or not isinstance(row.get(TEXT_KEY), str):
        found = _instead(row)
        raise NotTextError(
            f'{where} has no text ({found}): every row must be an object such as {{"text": "..."}}',
            "JSON without a text",
            found,
        )
    try:
        row[TEXT_KEY].encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which is no character and cannot be tokenized.
        raise DataError(f"{where} holds an unpaired surrogate (\\ud800 to \\udfff): write whole characters") from error
    return keyed_row(row, fallback)


def _instead(row: object) -> str:
    if not isinstance(row, dict):
        return f"it is {_kind(row)}"
    if TEXT_KEY in row:
        return f"its 'text' is {_kind(row[TEXT_KEY])}"
    return f"its keys: {printable(', '.join(row)[:200]) or 'none'}"


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")
