"""Dividing documents into calibration and test by a hash, so that no list of names has to be kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from pqkv.config import Split
from pqkv.text.documents import Document


@dataclass(frozen=True, slots=True)
class Keyed:
    """A document and the string whose hash decides its split: the relative name of a file, the text of a row."""

    document: Document
    key: str


def is_test(key: str) -> bool:
    """Whether `key` falls into the test split: one in ten does, by SHA-256 of its UTF-8 bytes."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10 == 0


def divide(keyed: Iterable[Keyed], split: Split) -> tuple[Document, ...]:
    """Return the documents of `split`, in order; calibration and test are disjoint and together are `all`.

    A copy of a calibration text stays in calibration whatever its own key says: text that was seen cannot test, and
    a copy is what has the same normal form.
    """
    everything = tuple(keyed)
    if split == "all":
        return tuple(entry.document for entry in everything)
    digests = [entry.document.digest for entry in everything]
    seen = {digest for digest, entry in zip(digests, everything, strict=True) if not is_test(entry.key)}
    wants_seen = split == "calibration"
    return tuple(
        entry.document for digest, entry in zip(digests, everything, strict=True) if (digest in seen) == wants_seen
    )
