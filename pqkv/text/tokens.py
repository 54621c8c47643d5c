"""A corpus as one stream of tokens that still knows where its documents begin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pqkv.text.documents import Corpus

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenStream:
    """`tokens` (n,) int64; `document_starts` (documents,) int64, ascending: where each document's tokens begin."""

    tokens: IntArray
    document_starts: IntArray
    corpus: Corpus


def tokenize(corpus: Corpus, encode: Callable[[str], list[int]], separator: int | None) -> TokenStream:
    """Encode every document by itself and lay the results one after another, `separator` between each two.

    A separator belongs to the document it ends. A document that encodes to nothing starts where its end is.
    """
    pieces: list[IntArray] = []
    starts: list[int] = []
    total = 0
    last = len(corpus.documents) - 1
    for index, document in enumerate(corpus.documents):
        ids = np.asarray(encode(document.text), dtype=np.int64)
        if separator is not None and index < last:
            ids = np.append(ids, np.int64(separator))
        starts.append(total)
        pieces.append(ids)
        total += len(ids)
    tokens = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
    return TokenStream(tokens, np.asarray(starts, dtype=np.int64), corpus)
