"""Was a text seen while codebooks were trained? Judged by whole documents, not by the names of corpora."""

from __future__ import annotations

import numpy as np

from pqkv.codec.codebook_file import Calibration
from pqkv.errors import ContaminationError
from pqkv.text import Document, TokenStream, normal_form, raw_digests, touched_documents

# Characters of the normal form; shorter documents (empty modules, licence notes) are alike in unrelated places.
_IDENTIFYING = 256


def identifying_documents(stream: TokenStream, starts: np.ndarray, length: int) -> tuple[str, ...]:
    """Digests of the documents that these windows touch, those too short to identify anything left out."""
    return tuple(dict.fromkeys(document.digest for document in _identifying(stream, starts, length)))


def check_contamination(
    calibration: Calibration, stream: TokenStream, starts: np.ndarray, length: int, *, allowed: bool
) -> str | None:
    """None if the windows share no document with the calibration text, in whatever form either was written.

    Otherwise a note for the record where that is allowed, and `ContaminationError` where it is not.
    """
    calibrated = frozenset(calibration.documents)
    shared = {d.digest for d in _identifying(stream, starts, length) if _is_among(calibrated, d)}
    if not shared and calibration.sha256 not in stream.corpus.sha256_of_forms:
        return None
    seen = f"{calibration.name}/{calibration.split}"
    tested = f"{stream.corpus.name}/{stream.corpus.split}"
    message = (
        f"{len(shared)} document(s) of {tested} were in the calibration text ({seen}) of these codes"
        if shared
        else f"{tested} is the very text ({seen}) these codes were calibrated on, if in other windows"
    )
    if allowed:
        return f"contaminated: {message}"
    raise ContaminationError(f"{message}; evaluate on another split or text, or pass --allow-contaminated to record it")


def _identifying(stream: TokenStream, starts: np.ndarray, length: int) -> list[Document]:
    touched = touched_documents(stream, starts, length)
    return [document for document in touched if len(normal_form(document.text)) >= _IDENTIFYING]


def _is_among(calibrated: frozenset[str], document: Document) -> bool:
    # Older files hold digests of the text as it stood, and nothing in a digest says which kind it is.
    return document.digest in calibrated or not calibrated.isdisjoint(raw_digests(document.text))
