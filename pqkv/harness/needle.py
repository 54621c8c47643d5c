"""Documents of `pqkv_needle`: a keyed word or number planted in text and asked for at its end, in the words of `pqkv
eval`'s recall. No tokenizer is asked, so every model is given the same texts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from pqkv.errors import ConfigError
from pqkv.quality.recall_words import FIRST, SECOND, WORDS, Fact, code_fact, word_fact
from pqkv.text import load_corpus


def _word(draw: np.random.Generator) -> Fact:
    return word_fact(f"{draw.choice(FIRST)} {draw.choice(SECOND)}", str(draw.choice(WORDS)))


def _number(draw: np.random.Generator) -> Fact:
    return code_fact(f"{draw.choice(FIRST)}-{draw.choice(SECOND)}", int(draw.integers(10000, 100000)))


_FACTS = {"word": _word, "number": _number}


def documents(
    depth: float,
    characters: int = 3000,
    needles: int = 20,
    data: str = "stdlib",
    seed: int = 0,
    fact: str = "word",
    **others: Any,  # noqa: ANN401 - the harness hands on every model argument
) -> dict[str, Dataset]:
    """`needles` prompts of `characters` of the test split of `data`, each with its own fact at `depth` (0 first, 1
    last) of it and a question for it at the end: a `fact` is a word, which small models find too, or a number, which
    the bundled model was trained to find. Raises `ConfigError` where the text is too short for one.
    """
    if fact not in _FACTS:
        raise ConfigError(f"pqkv_needle: a fact is a {' or a '.join(_FACTS)}, not {fact}")
    text = "\n\n".join(document.text for document in load_corpus(data, None, default="test").documents)
    if len(text) < characters or characters < 1 or needles < 1:
        raise ConfigError(
            f"pqkv_needle: {needles} texts of {characters} characters cannot be cut of {len(text)} of {data}; lower "
            "characters, or name more text as data"
        )
    rows = []
    for number, start in enumerate(np.linspace(0, len(text) - characters, needles).astype(int)):
        draw = np.random.default_rng([seed, number])  # the same facts and texts at every depth
        planted = _FACTS[fact](draw)
        filler = text[start : start + characters]
        at = filler.rfind("\n", 0, round(depth * characters)) + 1  # between lines
        prompt = filler[:at] + planted.statement + filler[at:] + planted.question
        rows.append({"prompt": prompt, "answer": planted.answer, "depth": depth})
    return {"test": Dataset.from_list(rows)}
