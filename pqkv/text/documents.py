"""Documents and corpora: what is read, with the digests that say which text it was."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

from pqkv.config import Split
from pqkv.reasons import reason
from pqkv.text.normal import digest_of, normal_form, raw_forms


@dataclass(frozen=True, slots=True)
class Document:
    """One text that belongs together: a file, a row, a book. `name` never holds a path of the machine."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        """Which text this is: 16 hexadecimal digits of SHA-256 over its normal form; the name does not count."""
        return digest_of(normal_form(self.text))


@dataclass(frozen=True)
class Corpus:
    """Documents in a fixed order, with the name and the split under which they were asked for.

    `passed_over` says, a line for each reason, what the source also held and was not read; it identifies nothing.
    """

    name: str
    split: Split
    documents: tuple[Document, ...]
    passed_over: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over every document's name and text, each preceded by its length, so that boundaries count."""
        return self._sha256(document.text for document in self.documents)

    @cached_property
    def sha256_of_forms(self) -> frozenset[str]:
        """The `sha256` of this corpus and of those that differ from it in the form of all their texts alike:
        line ends, Unicode form, white space and byte order mark around them.
        """
        forms = zip(*(raw_forms(document.text) for document in self.documents), strict=True)
        # of text in ASCII the Unicode forms are one, and follow each other
        return frozenset({self.sha256, *(self._sha256(texts) for texts, _ in groupby(forms))})

    def _sha256(self, texts: Iterable[str]) -> str:
        digest = hashlib.sha256()
        for document, text in zip(self.documents, texts, strict=True):
            for part in (document.name.encode(), text.encode()):
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
    """What `error` says, on one line that can be printed."""
    return printable(reason(error))
