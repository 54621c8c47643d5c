"""The inner bodies of `coded` as data: what `lookups.py` emits for a device and `simulated.py` does in Python."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyStep:
    """A thread's tokens against a few subspaces: one look-up for each (token, subspace).

    Codes are `nbits` wide and packed in words: of one subspace and all tokens, subspace after subspace; or in rows: of
    one token and all subspaces, token after token. A table entry has `entry_words` words, a subspace `entries` of them.
    With `decodes` an entry is a centroid in fp16, multiplied with the query of each head; else it holds sums, two heads
    a word, or one head in float32. fp16x2 sums go to float32 after `flush` subspaces.
    """

    tokens: int
    subspaces: int
    nbits: int
    row: bool
    entries: int
    entry_words: int
    group: int
    decodes: bool
    flush: int

    @property
    def line(self) -> int:
        """Words that hold the codes of one subspace, or of one token in rows."""
        return (self.subspaces if self.row else self.tokens) * self.nbits // 32

    def bit(self, token: int, subspace: int) -> int:
        """Where a code begins, counted from the first word."""
        line, place = (token, subspace) if self.row else (subspace, token)
        return 32 * line * self.line + place * self.nbits


@dataclass(frozen=True, slots=True)
class ValueStep:
    """A few tokens' values in one subspace, mixed by their weights: one look-up for each token.

    Codes are packed in words of one subspace; or one code is the low bits of each word (`spread`). Word w of centroid c
    in fp16 lies in row w * entries + c of the table, whose rows have `stride` words. Two heads share a word of weights;
    one head lies in it twice. fp16x2 sums of four tokens, two of them added up, go to float32.
    """

    tokens: int
    nbits: int
    spread: bool
    entries: int
    words: int
    elements: int
    stride: int
    group: int

    @property
    def line(self) -> int:
        """Words that hold the codes."""
        return self.tokens if self.spread else self.tokens * self.nbits // 32

    @property
    def weight_words(self) -> int:
        """Words that hold the weights of a token."""
        return (self.group + 1) // 2

    def bit(self, token: int) -> int:
        """Where a code begins, counted from the first word."""
        return token * (32 if self.spread else self.nbits)
