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

from pqkv.lm.model import LanguageModel
from pqkv.lm.tokens import TokenForm, check_ids, with_bos
from pqkv.quality.recall_words import FIRST, SECOND, WORDS, Fact, code_fact, examination, word_fact

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)


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

    def after(self, opening: tuple[int, ...]) -> RecallPrompt:
        """The same prompt behind these tokens."""
        moved = tuple(Question(q.depth, q.start + len(opening), q.end + len(opening)) for q in self.questions)
        return RecallPrompt(np.concatenate([np.array(opening, np.int64), self.ids]), moved)

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
    """One prompt per filler window (n, T), of exactly T tokens: what `form` opens a window with, filler with facts
    planted, then the questions. In a chat filler and one question for all facts are the user's, the answers the
    assistant's.

    As many of the five depths as leave half of the window to the filler; fewer rotate over the windows. Windows that
    not even one fact fits give no prompt. With the `coded` columns (first, end) at the end of a window one fact is
    planted, among them, at a depth of theirs that rotates over the windows: a word instead of a number, and a question
    in the words of the fact. That is what a model answers that was not trained on the longer form.
    """
    form = form or TokenForm()
    T = filler.shape[1] - len(form.opening)
    texts = filler[:, :T] if form.chat else with_bos(filler, form.bos)[:, len(form.opening) :]
    prompts = []
    for index, window in enumerate(texts):
        generator = np.random.default_rng([seed, index])
        if coded is not None:
            one = _word_prompt(lm, window, coded, DEPTHS[index % len(DEPTHS)], generator, form)
            prompts += [] if one is None else [one.after(form.opening)]
            continue
        used: set[str] = set()
        facts = [_code(generator, used) for _ in DEPTHS]
        cost = max(len(lm.encode(fact.statement)) + len(examination(lm, [fact], form.chat)[0]) for fact in facts)
        count = min(len(DEPTHS), T // 2 // cost)
        if count == 0:
            continue
        chosen = sorted((index + i * len(DEPTHS) // count) % len(DEPTHS) for i in range(count))
        prompts.append(
            _prompt(lm, window, [(DEPTHS[i], facts[i]) for i in chosen], generator, form).after(form.opening)
        )
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


def _code(generator: np.random.Generator, used: set[str]) -> Fact:
    while (key := f"{generator.choice(FIRST)}-{generator.choice(SECOND)}") in used:
        pass
    used.add(key)
    return code_fact(key, int(generator.integers(10000, 100000)))


def _word_prompt(
    lm: LanguageModel,
    window: np.ndarray,
    coded: tuple[int, int],
    depth: float,
    generator: np.random.Generator,
    form: TokenForm,
) -> RecallPrompt | None:
    """`window` with one fact at a depth of the coded columns, which count what opens a window; None where they do not
    hold it.
    """
    fact = word_fact(f"{generator.choice(FIRST)} {generator.choice(SECOND)}", str(generator.choice(WORDS)))
    statement, (tail, ((start, end),)) = lm.encode(fact.statement), examination(lm, [fact], form.chat)
    room = len(window) - len(statement) - len(tail)
    begun = len(form.opening)
    first, last = max(0, coded[0] - begun), min(coded[1] - begun, room + len(statement))
    if room <= 0 or last - first < len(statement):
        return None
    at = first + round(depth * (last - first - len(statement)))
    ids = np.concatenate([window[:at], statement, window[at:room], tail]).astype(np.int64)
    behind = len(ids) - len(tail)
    return RecallPrompt(ids, (Question(depth, behind + start, behind + end),))


def _prompt(
    lm: LanguageModel,
    window: np.ndarray,
    planted: list[tuple[float, Fact]],
    generator: np.random.Generator,
    form: TokenForm,
) -> RecallPrompt:
    asked = [planted[i] for i in generator.permutation(len(planted))]
    tail, spans = examination(lm, [fact for _, fact in asked], form.chat)
    statements = [(depth, lm.encode(fact.statement)) for depth, fact in planted]
    room = len(window) - len(tail) - sum(len(statement) for _, statement in statements)
    ids: list[int] = []
    taken = 0
    for depth, statement in statements:
        until = round(depth * room)
        ids += [int(token) for token in window[taken:until]] + statement
        taken = until
    ids += [int(token) for token in window[taken:room]]
    questions = tuple(
        Question(depth, len(ids) + start, len(ids) + end) for (depth, _), (start, end) in zip(asked, spans, strict=True)
    )
    return RecallPrompt(np.array(ids + tail, dtype=np.int64), questions)
