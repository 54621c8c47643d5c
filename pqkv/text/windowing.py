"""Disjoint windows of a token stream, and the documents they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pqkv.errors import ConfigError, DataError
from pqkv.text.documents import Document
from pqkv.text.tokens import IntArray, TokenStream


@dataclass(frozen=True, slots=True, eq=False)
class WindowSet:
    """`tokens` (n, length) int64, and `starts` (n,) int64: the index in the stream of each window's first token."""

    tokens: IntArray
    starts: IntArray


def windows(stream: TokenStream, length: int, count: int | None) -> WindowSet:
    """Cut `stream` into disjoint windows of `length` tokens and take `count` of them, spread evenly; None: all.

    The last, partial window is dropped. Window i of `count` is number floor(i * available / count); where fewer
    exist than asked for, all of them are returned. Raises `DataError` when the stream is shorter than a window.
    """
    if length < 1 or (count is not None and count < 1):
        raise ConfigError(f"windows have at least one token and there is at least one: not {count} of {length}")
    available = len(stream.tokens) // length
    if available == 0:
        corpus = stream.corpus
        raise DataError(
            f"{corpus.name} ({corpus.split}) has {len(stream.tokens)} tokens, fewer than one window of {length}: "
            "give more text, another split or a smaller --context"
        )
    taken = available if count is None else min(count, available)
    numbers = np.arange(taken, dtype=np.int64) * available // taken
    table = stream.tokens[: available * length].reshape(available, length)  # (n * length,) -> (n, length)
    return WindowSet(tokens=table[numbers], starts=numbers * length)


def documents_in(stream: TokenStream, starts: IntArray | Sequence[int], length: int) -> tuple[str, ...]:
    """Return the digests, each once and in the stream's order, of the `touched_documents`."""
    return tuple(dict.fromkeys(document.digest for document in touched_documents(stream, starts, length)))


def touched_documents(stream: TokenStream, starts: IntArray | Sequence[int], length: int) -> tuple[Document, ...]:
    """Return, in the stream's order, the documents that share a token with a window.

    Windows are `[start, start + length)`; whatever of them lies outside the stream is disregarded.
    """
    size = len(stream.tokens)
    first = np.clip(np.asarray(starts, dtype=np.int64), 0, size)
    end = np.clip(np.asarray(starts, dtype=np.int64) + length, 0, size)
    first, end = first[first < end], end[first < end]
    # A token's document is the last one that starts at or before it.
    low = np.searchsorted(stream.document_starts, first, side="right") - 1
    high = np.searchsorted(stream.document_starts, end - 1, side="right") - 1
    opened = np.zeros(len(stream.document_starts) + 1, dtype=np.int64)
    np.add.at(opened, low, 1)
    np.add.at(opened, high + 1, -1)
    touched = np.cumsum(opened)[:-1] > 0
    # A document without tokens lies between its neighbours and is touched by no window.
    touched &= np.diff(stream.document_starts, append=size) > 0
    documents = stream.corpus.documents
    return tuple(documents[index] for index in np.flatnonzero(touched))
