"""What a GGUF file says of itself, read without its weights: settings, and which tensors it holds.

The `gguf` package reads the same in seconds, as it makes an array of every string of the vocabulary.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


class NotGGUF(ValueError):
    """A file that is no GGUF file, or only the beginning of one; the message goes on after "it"."""


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """A tensor as the file lists it: `kind` is the number of its quantization type, `offset` from where data begin."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """`settings` holds scalars and strings by their keys, and of an array its length; data begin at byte `start` of
    `size`.
    """

    settings: dict[str, int | float | str]
    tensors: tuple[GGUFTensor, ...]
    start: int
    size: int

    @property
    def architecture(self) -> str:
        """`general.architecture`, or "" where the file has none."""
        return str(self.settings.get("general.architecture", ""))


def read_header(path: Path) -> GGUFHeader:
    """Read the header of the file at `path`. Raises `NotGGUF` for another kind of file and for one that ends before its
    header does, `OSError` for one that cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise NotGGUF("is not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            try:
                return _parse(_Reader(data, len(MAGIC)))
            except (struct.error, UnicodeDecodeError, KeyError, ZeroDivisionError) as error:
                raise NotGGUF("is cut off or damaged: its header cannot be read; download it again") from error


def _parse(reader: _Reader) -> GGUFHeader:
    version = reader.scalar("<I")
    if version not in _VERSIONS:
        raise NotGGUF(f"is GGUF of version {version}, or big-endian; versions 2 and 3, little-endian, can be read")
    tensors, settings = int(reader.scalar("<Q")), int(reader.scalar("<Q"))
    found = {reader.string(): reader.value(int(reader.scalar("<I"))) for _ in range(settings)}
    listed = tuple(reader.tensors(tensors))
    alignment = int(found.get("general.alignment", 32))
    return GGUFHeader(found, listed, -(-reader.at // alignment) * alignment, len(reader.data))


class _Reader:
    """A position in the file, moved by what is read there."""

    def __init__(self, data: mmap.mmap, at: int) -> None:
        self.data, self.at = data, at

    def scalar(self, form: str) -> int | float:
        value: int | float = struct.unpack_from(form, self.data, self.at)[0]
        self.at += struct.calcsize(form)
        return value

    def string(self) -> str:
        start = self._pass_string()
        return self.data[start : self.at].decode("utf-8")

    def value(self, kind: int) -> int | float | str:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        of, length = int(self.scalar("<I")), int(self.scalar("<Q"))
        if of in _SCALARS:
            self._move(length * struct.calcsize(_SCALARS[of]))
            return length
        if of != _STRING:  # arrays of arrays are in no file that llama.cpp writes
            raise KeyError(of)
        for _ in range(length):
            self._pass_string()
        return length

    def tensors(self, count: int) -> Iterator[GGUFTensor]:
        for _ in range(count):
            name, dimensions = self.string(), int(self.scalar("<I"))
            shape = tuple(int(self.scalar("<Q")) for _ in range(dimensions))
            yield GGUFTensor(name, shape, int(self.scalar("<I")), int(self.scalar("<Q")))

    def _pass_string(self) -> int:
        """Move past a string; where its bytes begin."""
        length = int(self.scalar("<Q"))
        start = self.at
        self._move(length)
        return start

    def _move(self, count: int) -> None:
        if self.at + count > len(self.data):
            raise struct.error("past the end")
        self.at += count
