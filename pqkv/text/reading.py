"""Reading files of text, compressed or not; whatever is wrong with one becomes a `DataError` of one line."""

from __future__ import annotations

import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pqkv.errors import DataError
from pqkv.text.compression import open_binary
from pqkv.text.documents import brief, printable

HEAD_BYTES = 1 << 16


class NotTextError(DataError):
    """A file that holds something other than UTF-8 text, or no rows of it.

    `reason` says which kind of thing it is, `detail` what was found in this one, for the notes on a folder.
    """

    def __init__(self, message: str, reason: str, detail: str = "") -> None:
        super().__init__(message)
        self.reason, self.detail = reason, detail


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the file system and the decompressors raise about `path` into a `DataError`."""
    shown = printable(str(path))
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(shown, error) from error
    except PermissionError as error:
        # Below a folder, the file system names the very entry it refused.
        refused = printable(str(error.filename or path))
        raise DataError(f"{refused} may not be read: permission denied; give this user the right to read it") from error
    except OSError as error:
        if error.errno is None:  # bz2 and zstd; the system's own errors are numbered
            raise _damaged(shown, error) from error
        reason = error.strerror or brief(error)
        raise DataError(f"cannot read {shown}: {reason}; check that it is there and readable") from error


def _damaged(shown: str, error: Exception) -> DataError:
    return DataError(f"{shown} is damaged or cut short ({brief(error)}): fetch or compress it again")


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
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NotTextError(f"{where} is not UTF-8 text (it begins as UTF-16 does): convert it to UTF-8", "UTF-16")
    if b"\0" in data:
        raise NotTextError(f"{where} is binary (it holds NUL bytes): give a file of UTF-8 text", "binary")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise NotTextError(f"{where} is not UTF-8 text ({byte}): convert it to UTF-8", "not UTF-8") from error
