"""Documents into sequences of one length, whole wherever they fit."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_LOOK_AHEAD = 64  # pieces of the shuffled order among which the longest that fits is taken
_GAP = 64  # a gap of fewer tokens is filled with the head of the next piece without looking further


@dataclass(frozen=True, slots=True, eq=False)
class Packing:
    """Sequence i consists of the spans (start, end) `spans[first[i] : first[i + 1]]` of the token file, together
    exactly `length` tokens.
    """

    spans: np.ndarray
    first: np.ndarray

    def sequence(self, tokens: np.ndarray, number: int) -> np.ndarray:
        """Token ids (length,) int64 of sequence `number`."""
        spans = self.spans[self.first[number] : self.first[number + 1]]
        return np.concatenate([tokens[start:end] for start, end in spans]).astype(np.int64)


def pack(starts: np.ndarray, length: int, count: int, seed: int) -> Packing:
    """Pack `count` sequences of `length` tokens from documents between `starts` (n + 1,), epoch after epoch.

    A document longer than a sequence is cut into sequences' lengths first. Then each sequence takes, of the next pieces
    in a shuffled order, the longest that fits, until only the head of a piece fits; its rest goes on later. So at most
    one document a sequence is cut that need not be.
    """
    generator = np.random.default_rng(seed)
    waiting: deque[tuple[int, int]] = deque()
    spans: list[tuple[int, int]] = []
    first = [0]
    for _ in range(count):
        room = length
        while room:
            if len(waiting) < _LOOK_AHEAD:
                waiting.extend(_epoch(starts, length, generator))
            chosen = 0
            if room > _GAP:
                sizes = [waiting[i][1] - waiting[i][0] for i in range(_LOOK_AHEAD)]
                fitting = [size if size <= room else 0 for size in sizes]
                chosen = int(np.argmax(fitting)) if max(fitting) else 0
            start, end = waiting[chosen]
            del waiting[chosen]
            taken = min(room, end - start)
            spans.append((start, start + taken))
            room -= taken
            if start + taken < end:
                waiting.appendleft((start + taken, end))
        first.append(len(spans))
    return Packing(np.array(spans, dtype=np.int64), np.array(first, dtype=np.int64))


def _epoch(starts: np.ndarray, length: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    pieces = [
        (int(at), int(min(at + length, end)))
        for begin, end in pairwise(starts)
        for at in range(int(begin), int(end), length)
    ]
    # a corpus smaller than the look-ahead is gone through more than once an epoch
    pieces *= -(-_LOOK_AHEAD // len(pieces))
    return [pieces[i] for i in generator.permutation(len(pieces))]
