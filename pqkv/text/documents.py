"""Documents and corpora: what is read, with the digests that say which text it was."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from pqkv.config import Split


@dataclass(frozen=True, slots=True)
class Document:
    """One text that belongs together: a file, a row, a book. `name` never holds a path of the machine."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of SHA-256 over the text in UTF-8; the name does not count."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents in a fixed order, with the name and the split under which they were asked for."""

    name: str
    split: Split
    documents: tuple[Document, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 over every document's name and text, each preceded by its length, so that boundaries count."""
        digest = hashlib.sha256()
        for document in self.documents:
            for part in (document.name.encode(), document.text.encode()):
                digest.update(len(part).to_bytes(8, "big"))
                digest.update(part)
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a record says about its text: name, split, sha256, number of documents, bytes of text in UTF-8."""
        return {
            "name": self.name,
            "split": self.split,
            "sha256": self.sha256,
            "documents": len(self.documents),
            "bytes": sum(len(document.text.encode()) for document in self.documents),
        }


def printable(text: str) -> str:
    """`text` on one line and encodable: control characters and undecodable bytes become escapes."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def brief(error: Exception) -> str:
    """What `error` says, on one line of at most 200 characters."""
    return printable(" ".join(str(error).split())[:200])
