"""Recall: keyed facts planted at known depths of real text and asked for at its end.

An answer counts only if every token of it is the arg-max, which under teacher forcing is the same as greedy decoding
producing it exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pqkv.errors import ModelError
from pqkv.lm.model import LanguageModel
from pqkv.lm.tokens import TokenForm, check_ids, with_bos

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
_FIRST = (
    "amber",
    "silver",
    "quiet",
    "northern",
    "hollow",
    "crimson",
    "gentle",
    "iron",
    "misty",
    "golden",
    "rapid",
    "pale",
)
_WORDS = (
    "apple", "river", "stone", "bread", "horse", "glass", "chair", "table", "cloud", "tiger", "house", "music", "paper",
    "light", "water", "garden", "bridge", "silver", "flower", "mountain",
)  # fmt: skip
_SECOND = ("falcon", "harbor", "willow", "engine", "lantern", "meadow", "anchor", "canyon", "violin", "beacon", "otter")


class TokensApart(ModelError):
    """A tokenizer by which a question and its answer cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Question:
    """Where an answer stands in the prompt: its tokens are predicted by rows start - 1 ... end - 2."""

    depth: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class RecallPrompt:
    """Token ids (T,) and the questions at their end."""

    ids: np.ndarray
    questions: tuple[Question, ...]

    def after(self, bos: int) -> RecallPrompt:
        """The same prompt behind a token that begins the sequence."""
        moved = tuple(Question(q.depth, q.start + 1, q.end + 1) for q in self.questions)
        return RecallPrompt(np.append(np.int64(bos), self.ids), moved)

    def answered_by(self, newest: int) -> RecallPrompt:
        """The same prompt with those questions only that its `newest` tokens answer."""
        first = len(self.ids) - newest
        return RecallPrompt(self.ids, tuple(q for q in self.questions if q.start - 1 >= first))


def build_prompts(
    lm: LanguageModel,
    filler: np.ndarray,
    seed: int,
    form: TokenForm | None = None,
    coded: tuple[int, int] | None = None,
) -> list[RecallPrompt]:
    """One prompt per filler window (n, T), of exactly T tokens: the beginning of sequence where `form` has one, filler
    with facts planted, then the questions.

    As many of the five depths as leave half of the window to the filler; fewer rotate over the windows. Windows that
    not even one fact fits give no prompt. With the `coded` columns (first, end) at the end of a window one fact is
    planted, among them, at a depth of theirs that rotates over the windows: a word instead of a number, and a question
    in the words of the fact. That is what a model answers that was not trained on the longer form.
    """
    bos = None if form is None else form.bos
    begun = int(bos is not None)  # tokens in front of the filler
    T = filler.shape[1] - begun
    prompts = []
    for index, window in enumerate(with_bos(filler, bos)[:, begun:]):
        generator = np.random.default_rng([seed, index])
        if coded is not None:
            one = _word_prompt(lm, window, coded, DEPTHS[index % len(DEPTHS)], generator, begun)
            prompts += [] if one is None else [one if bos is None else one.after(bos)]
            continue
        used: set[str] = set()
        facts = [_fact(lm, generator, used) for _ in DEPTHS]
        cost = max(len(f.statement) + len(f.question) + len(f.answer) for f in facts)
        count = min(len(DEPTHS), T // 2 // cost)
        if count == 0:
            continue
        chosen = sorted((index + i * len(DEPTHS) // count) % len(DEPTHS) for i in range(count))
        prompt = _prompt(window, [(DEPTHS[i], facts[i]) for i in chosen], generator)
        prompts.append(prompt if bos is None else prompt.after(bos))
    if prompts:
        check_ids(lm, np.stack([prompt.ids for prompt in prompts]).ravel(), "the facts that recall plants")
    return prompts


def answered(
    prompt: RecallPrompt, found: Tensor, head: Callable[[Tensor], Tensor] | None = None
) -> list[tuple[float, bool, float]]:
    """(depth, whole answer right, share of its tokens right) of each question, from the logits (n, V) of the prompt's
    last n tokens, which answer all of its questions, or from the states (n, hidden) that `head` makes them of: only
    for the rows that answer.
    """
    results = []
    first = len(prompt.ids) - len(found)
    for question in prompt.questions:
        rows = found[question.start - 1 - first : question.end - 1 - first]
        predicted = (rows if head is None else head(rows)).argmax(-1).cpu().numpy()
        right = predicted == prompt.ids[question.start : question.end]
        results.append((question.depth, bool(right.all()), float(right.mean())))
    return results


def by_depth(
    coded: Sequence[list[tuple[float, bool, float]]], exact: Sequence[list[tuple[float, bool, float]]]
) -> list[dict[str, Any]]:
    """Recall per depth over all prompts, whole answers and single tokens."""
    rows = []
    for depth in DEPTHS:
        pairs = [
            (c, e) for cs, es in zip(coded, exact, strict=True) for c, e in zip(cs, es, strict=True) if c[0] == depth
        ]
        if pairs:
            rows.append(
                {
                    "depth": depth,
                    "questions": len(pairs),
                    "recall": float(np.mean([c[1] for c, _ in pairs])),
                    "recall_exact": float(np.mean([e[1] for _, e in pairs])),
                    "answer_tokens_right": float(np.mean([c[2] for c, _ in pairs])),
                    "answer_tokens_right_exact": float(np.mean([e[2] for _, e in pairs])),
                }
            )
    return rows


@dataclass(frozen=True, slots=True)
class _Fact:
    statement: list[int]
    question: list[int]
    answer: list[int]


def pieces_fit(lm: LanguageModel) -> bool:
    """Whether this tokenizer gives the same tokens for a question with its answer as for both apart, as records took
    them that do not say `recall_pieces`. A tokenizer that puts a space before every text does not.
    """
    keys = (f"{first}-{second}" for first in _FIRST for second in _SECOND)
    asked = [_asked(key, 10007 + 677 * number) for number, key in enumerate(keys)]
    try:
        return all(_together(lm, *pair) == (lm.encode(pair[0]), lm.encode(pair[1])) for pair in asked)
    except TokensApart:
        return True  # no recall is measured: there is nothing to say of it


def _fact(lm: LanguageModel, generator: np.random.Generator, used: set[str]) -> _Fact:
    while (key := f"{generator.choice(_FIRST)}-{generator.choice(_SECOND)}") in used:
        pass
    used.add(key)
    code = int(generator.integers(10000, 100000))
    statement = lm.encode(f"\nRemember: the code of {key} is {code}.\n")
    return _Fact(statement, *_together(lm, *_asked(key, code)))


def _word_prompt(
    lm: LanguageModel,
    window: np.ndarray,
    coded: tuple[int, int],
    depth: float,
    generator: np.random.Generator,
    begun: int,
) -> RecallPrompt | None:
    """`window` with one fact at a depth of the coded columns, which count the `begun` tokens before it; None where they
    do not hold it.
    """
    key, word = f"{generator.choice(_FIRST)} {generator.choice(_SECOND)}", generator.choice(_WORDS)
    said = f"\nThe secret word of the {key} is"
    statement, (question, answer) = lm.encode(f"{said} {word}.\n"), _together(lm, said, f" {word}")
    room = len(window) - len(statement) - len(question) - len(answer)
    first, end = coded[0] - begun, min(coded[1] - begun, room + len(statement))
    if room <= 0 or end - first < len(statement):
        return None
    at = max(0, first) + round(depth * (end - max(0, first) - len(statement)))
    ids = np.concatenate([window[:at], statement, window[at:room], question, answer]).astype(np.int64)
    return RecallPrompt(ids, (Question(depth, len(ids) - len(answer), len(ids)),))


def _asked(key: str, code: int) -> tuple[str, str]:
    return f"\nQuestion: what is the code of {key}? Answer:", f" {code}"


def _together(lm: LanguageModel, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Tokens of a question and of its answer, encoded as one text and parted where the answer begins: apart, a
    tokenizer may begin the answer as it begins a text. A token that reaches over the border is the answer's.

    Raises `TokensApart` for a tokenizer that does not tell where its tokens stand.
    """
    ids, ends = lm.encode_with_ends(question + answer)
    if ends is None:
        apart = lm.encode(question)
        if ids[: len(apart)] != apart:
            raise TokensApart(
                f"recall not measured: the tokenizer of {lm.name} does not tell where its tokens stand in a text (it "
                "is not a fast one), and a question has other tokens with its answer than without"
            )
        return apart, ids[len(apart) :]
    border = sum(end <= len(question) for end in ends)
    return ids[:border], ids[border:]


def _prompt(window: np.ndarray, planted: list[tuple[float, _Fact]], generator: np.random.Generator) -> RecallPrompt:
    T = len(window)
    asked = [planted[i] for i in generator.permutation(len(planted))]
    tail: list[int] = []
    spans = []
    for depth, fact in asked:
        tail += fact.question
        spans.append((depth, len(tail), len(tail) + len(fact.answer)))
        tail += fact.answer
    room = T - len(tail) - sum(len(fact.statement) for _, fact in planted)
    ids: list[int] = []
    taken = 0
    for depth, fact in planted:
        until = round(depth * room)
        ids += [int(token) for token in window[taken:until]] + fact.statement
        taken = until
    ids += [int(token) for token in window[taken:room]]
    questions = tuple(Question(depth, len(ids) + start, len(ids) + end) for depth, start, end in spans)
    return RecallPrompt(np.array(ids + tail, dtype=np.int64), questions)
