"""Compressed files: which names say so, and their bytes."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, cast

from pqkv.errors import DataError
from pqkv.text.documents import printable


def open_binary(path: Path) -> IO[bytes]:
    """Open `path` for reading bytes, decompressing where its name ends as one of `READ` does."""
    opener = READ.get(path.suffix.lower())
    return opener(path) if opener else path.open("rb")


def plain_name(name: str) -> str:
    """Return `name` in lower case and without the ending that says how it is compressed: `A.JSONL.gz` is `a.jsonl`."""
    path = Path(name.lower())
    return path.stem if path.suffix in READ else path.name


class _Zstandard(io.RawIOBase):
    """The bytes of a zstd file; pyarrow brings the decompressor, the standard library has none before 3.14."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._where = printable(str(path))
        self._file = path.open("rb")
        self._stream = pa.CompressedInputStream(pa.PythonFile(self._file, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]  # any writable buffer
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if "too much memory" in str(error):  # whole, and no other word than this tells it
                raise DataError(
                    f"{self._where} was compressed over a window beyond 128 MiB: unpack it with zstd -d --long=31"
                ) from error
            raise
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _zstandard(path: Path) -> IO[bytes]:
    return io.BufferedReader(_Zstandard(path), 1 << 17)


def _lzma(path: Path) -> IO[bytes]:
    return cast(IO[bytes], lzma.LZMAFile(path))


READ: Mapping[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: cast(IO[bytes], gzip.GzipFile(path)),
    ".bz2": lambda path: cast(IO[bytes], bz2.BZ2File(path)),
    ".xz": _lzma,
    ".lzma": _lzma,
    ".zst": _zstandard,
    ".zstd": _zstandard,
}
