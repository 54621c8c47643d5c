"""What recall plants and asks, in words and in tokens: as a text goes on, or as an assistant is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pqkv.errors import ModelError
from pqkv.lm.chat import ChatTemplate
from pqkv.lm.model import LanguageModel

FIRST = (
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
SECOND = ("falcon", "harbor", "willow", "engine", "lantern", "meadow", "anchor", "canyon", "violin", "beacon", "otter")
WORDS = (
    "apple", "river", "stone", "bread", "horse", "glass", "chair", "table", "cloud", "tiger", "house", "music", "paper",
    "light", "water", "garden", "bridge", "silver", "flower", "mountain",
)  # fmt: skip


class TokensApart(ModelError):
    """A tokenizer by which a question and its answer cannot be told apart."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What is planted, the question it answers at the end of a text, and for a chat the `noun` that a user asks for of
    the `key` and the `reply` that the answer completes.
    """

    key: str
    noun: str
    statement: str
    question: str
    reply: str
    answer: str


def code_fact(key: str, code: int) -> Fact:
    """A number of five digits, in the form that the bundled model was trained on."""
    return Fact(
        key, "code", f"\nRemember: the code of {key} is {code}.\n", f"\nQuestion: what is the code of {key}? Answer:",
        f"The code of {key} is", f" {code}",
    )  # fmt: skip


def word_fact(key: str, word: str) -> Fact:
    """A word, asked for in the words of the fact."""
    said = f"The secret word of the {key} is"
    return Fact(f"the {key}", "secret word", f"\n{said} {word}.\n", f"\n{said}", said, f" {word}")


def examination(
    lm: LanguageModel, facts: Sequence[Fact], chat: ChatTemplate | None
) -> tuple[list[int], list[tuple[int, int]]]:
    """The end of a prompt that asks for `facts` and answers, and where in it each answer begins and ends. In a chat the
    user's text ends with one question for all of them, and the assistant answers a line each.

    Raises `TokensApart` for a tokenizer that does not tell where its tokens stand.
    """
    ids: list[int] = []
    if chat is not None:
        asked, several = ", ".join(fact.key for fact in facts), len(facts) > 1
        question = f"\nWhat {'are' if several else 'is'} the {facts[0].noun}{'s' if several else ''} of {asked}?"
        ids += [*lm.encode(question), *chat.between]
    spans = []
    for number, fact in enumerate(facts):
        lead = fact.question if chat is None else f"{'' if number == 0 else chr(10)}{fact.reply}"
        question_ids, answer = together(lm, lead, fact.answer)
        ids += question_ids
        spans.append((len(ids), len(ids) + len(answer)))
        ids += answer
    return ids, spans


def pieces_fit(lm: LanguageModel) -> bool:
    """Whether this tokenizer gives the same tokens for a question with its answer as for both apart, as records took
    them that do not say `recall_pieces`. A tokenizer that puts a space before every text does not.
    """
    keys = (f"{first}-{second}" for first in FIRST for second in SECOND)
    facts = [code_fact(key, 10007 + 677 * number) for number, key in enumerate(keys)]
    try:
        return all(
            together(lm, fact.question, fact.answer) == (lm.encode(fact.question), lm.encode(fact.answer))
            for fact in facts
        )
    except TokensApart:
        return True  # no recall is measured: there is nothing to say of it


def together(lm: LanguageModel, question: str, answer: str) -> tuple[list[int], list[int]]:
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
