"""Synthetic recall: keyed facts planted in text and asked for later, in token ids, with a weight for every token."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from pqkv.errors import ConfigError

Encode = Callable[[str], list[int]]
_WORD = re.compile(r"\b[a-z]{4,9}\b")
_DIGITS = 5


def frequent_words(texts: Iterable[str], count: int) -> list[str]:
    """The `count` most frequent words of four to nine small letters: what keys are made of."""
    seen: Counter[str] = Counter()
    for text in texts:
        seen.update(_WORD.findall(text))
    return [word for word, _ in seen.most_common(count)]


@dataclass(frozen=True, slots=True)
class Fact:
    """Token ids of a statement, of its question up to the answer, of the statement's own start, and of the answer."""

    statement: list[int]
    question: list[int]
    repeat: list[int]
    answer: list[int]

    @property
    def cost(self) -> int:
        """Tokens of the statement and of one question with its answer."""
        return len(self.statement) + len(self.question) + len(self.answer)


class FactWriter:
    """Writes facts as `pqkv eval` asks for them, with keys of two words out of thousands and codes of five digits.

    The parts are encoded once: byte-level BPE never merges over the seams used here (checked by `check`).
    """

    def __init__(self, encode: Encode, words: list[str]) -> None:
        self._first = [encode(f" {word}") for word in words]
        self._second = [encode(f"-{word}") for word in words]
        self._digit = [encode(f"{digit}") for digit in range(10)]
        self._space = encode(" 7")[: -len(self._digit[7])]
        self._code = encode("\nRemember: the code of")
        self._is, self._end = encode(" is"), encode(".\n")
        self._what, self._answer = encode("\nQuestion: what is the code of"), encode("? Answer:")
        self._words, self._encode = words, encode

    def draw(self, generator: np.random.Generator) -> Fact:
        """A fact with a random key and code."""
        a, b = generator.integers(len(self._words), size=2)
        digits = [int(generator.integers(1, 10)), *(int(d) for d in generator.integers(0, 10, size=_DIGITS - 1))]
        key = self._first[a] + self._second[b]
        answer = self._space + [token for d in digits for token in self._digit[d]]
        opening = self._code + key + self._is
        return Fact(opening + answer + self._end, self._what + key + self._answer, opening, answer)

    def check(self) -> None:
        """Raise `ConfigError` unless parts joined are what the tokenizer makes of a statement, and of question and
        answer.
        """
        word = self._words[0]
        key = self._first[0] + self._second[0]
        answer = self._space + [token for d in (4, 8, 2, 1, 3) for token in self._digit[d]]
        lines = {
            f"\nRemember: the code of {word}-{word} is 48213.\n": self._code + key + self._is + answer + self._end,
            f"\nQuestion: what is the code of {word}-{word}? Answer: 48213": self._what + key + self._answer + answer,
        }
        if any(joined != self._encode(line) for line, joined in lines.items()):
            raise ConfigError("the tokenizer joins parts of a fact's line: it must split at spaces, digits and hyphens")


def planted(text: np.ndarray, facts: list[Fact], generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Text (T,) with facts at random depths and a question for each later, cut to T tokens, and which of them answer.

    Distances from fact to question are log-uniform, so near and far ones are both frequent. Returns ids (T,) int64 and
    a mask (T,) bool of the answers' tokens.
    """
    T = len(text)
    room = T - sum(fact.cost for fact in facts)
    inserts: list[tuple[int, list[int], int]] = []
    for fact in facts:
        distance = int(np.exp(generator.uniform(np.log(8), np.log(max(9, room)))))
        asked = int(generator.integers(min(distance, room), room + 1))
        inserts.append((max(0, asked - distance), fact.statement, 0))
        inserts.append((asked, fact.question + fact.answer, len(fact.answer)))
    inserts.sort(key=lambda insert: insert[0])  # stable: a statement stays before its own question
    ids, answers, taken = [], [], 0
    for position, piece, answered in inserts:
        ids += [text[taken:position], np.array(piece)]
        answers += [np.zeros(position - taken + len(piece) - answered, dtype=bool), np.ones(answered, dtype=bool)]
        taken = position
    ids.append(text[taken:room])
    answers.append(np.zeros(room - taken, dtype=bool))
    return np.concatenate(ids).astype(np.int64), np.concatenate(answers)


def dense(
    text: np.ndarray, writer: FactWriter, fillers: tuple[int, int], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A sequence (T,) of facts, a little text between them, then questions in another order; text fills what is left.

    Half of the questions repeat the statement's own words up to the answer: the same key, recognised more easily.
    """
    T = len(text)
    facts: list[Fact] = []
    gaps: list[int] = []
    used = 0
    wanted = int(generator.integers(2, 9))
    while len(facts) < wanted:
        fact, gap = writer.draw(generator), int(generator.integers(fillers[0], fillers[1] + 1))
        if used + gap + fact.cost > T:
            break
        facts.append(fact)
        gaps.append(gap)
        used += gap + fact.cost
    ids, answers, taken = [], [], 0
    for fact, gap in zip(facts, gaps, strict=True):
        ids += [text[taken : taken + gap], np.array(fact.statement)]
        answers.append(np.zeros(gap + len(fact.statement), dtype=bool))
        taken += gap
    for number in generator.permutation(len(facts)):
        fact = facts[number]
        asked = fact.question if generator.random() < 0.5 else fact.repeat
        ids.append(np.array(asked + fact.answer))
        answers += [np.zeros(len(asked), dtype=bool), np.ones(len(fact.answer), dtype=bool)]
    ids.append(text[taken:])
    answers.append(np.zeros(T - taken, dtype=bool))
    return np.concatenate(ids)[:T].astype(np.int64), np.concatenate(answers)[:T]
