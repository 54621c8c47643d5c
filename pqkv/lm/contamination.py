"""Was a text seen while codebooks were trained? Judged by whole documents, not by the names of corpora."""

from __future__ import annotations

import numpy as np

from pqkv.codec.codebook_file import CodebookHeader
from pqkv.errors import ContaminationError
from pqkv.text import TokenStream, documents_in

_IDENTIFYING = 256  # characters; shorter documents (empty modules, licence notes) are alike in unrelated places


def identifying_documents(stream: TokenStream, starts: np.ndarray, length: int) -> tuple[str, ...]:
    """Digests of the documents that these windows touch, those too short to identify anything left out."""
    short = {document.digest for document in stream.corpus.documents if len(document.text) < _IDENTIFYING}
    return tuple(digest for digest in documents_in(stream, starts, length) if digest not in short)


def check_contamination(
    header: CodebookHeader, stream: TokenStream, starts: np.ndarray, length: int, *, allowed: bool
) -> str | None:
    """None if the windows share no document with the calibration text.

    Otherwise a note for the record where that is allowed, and `ContaminationError` where it is not.
    """
    shared = set(header.calibration.documents) & set(identifying_documents(stream, starts, length))
    if not shared and header.calibration.sha256 != stream.corpus.sha256:
        return None
    seen = f"{header.calibration.name}/{header.calibration.split}"
    tested = f"{stream.corpus.name}/{stream.corpus.split}"
    message = (
        f"{len(shared)} document(s) of {tested} were in the calibration text ({seen}) of these codebooks"
        if shared
        else f"{tested} is the very text ({seen}) these codebooks were calibrated on, if in other windows"
    )
    if allowed:
        return f"contaminated: {message}"
    raise ContaminationError(f"{message}; evaluate on another split or text, or pass --allow-contaminated to record it")
