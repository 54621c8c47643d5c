"""Reading files of text, compressed or not; whatever is wrong with one becomes a `DataError` of one line."""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from pqkv.errors import DataError
from pqkv.text.documents import brief, printable

HEAD_BYTES = 1 << 16


class NotTextError(DataError):
    """A file that holds something other than UTF-8 text."""


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the file system and the decompressors raise about `path` into a `DataError`."""
    shown = printable(str(path))
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{shown} is damaged or cut short ({brief(error)}): fetch or compress it again") from error
    except PermissionError as error:
        # Below a folder, the file system names the very entry it refused.
        refused = printable(str(error.filename or path))
        raise DataError(f"{refused} may not be read: permission denied; give this user the right to read it") from error
    except OSError as error:
        reason = error.strerror or brief(error)
        raise DataError(f"cannot read {shown}: {reason}; check that it is there and readable") from error


def open_binary(path: Path) -> IO[bytes]:
    """Open `path` for reading bytes, decompressing when its name ends in .gz or .xz."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if suffix == ".xz":
        return cast(IO[bytes], lzma.open(path, "rb"))
    return path.open("rb")


def read_text(path: Path) -> str:
    """Return the whole text of `path` without a byte order mark; raise `NotTextError` if it is not UTF-8 text."""
    with explained(path), open_binary(path) as file:
        # A folder may hold files of gigabytes that are no text: their first bytes usually say so.
        data = file.read(HEAD_BYTES)
        if b"\0" not in data:
            data += file.read()
    return decode(data, printable(str(path)))


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of `path` as (number from 1, bytes); only newlines end a line, as JSON lines demand."""
    with explained(path), open_binary(path) as file:
        yield from enumerate(file, 1)


def decode(data: bytes, where: str) -> str:
    """Return `data` as text without a byte order mark; raise `NotTextError` naming `where`."""
    if b"\0" in data:
        raise NotTextError(f"{where} is binary (it holds NUL bytes): give a file of UTF-8 text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise NotTextError(f"{where} is not UTF-8 text ({byte}): convert it to UTF-8") from error
