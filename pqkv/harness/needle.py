"""Documents of `pqkv_needle`: a keyed number planted in text and asked for at its end, in the words of `pqkv eval`'s
recall. No tokenizer is asked, so every model is given the same texts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from pqkv.errors import ConfigError
from pqkv.quality.recall_words import FIRST, SECOND, code_fact
from pqkv.text import load_corpus


def documents(
    depth: float,
    characters: int = 3000,
    needles: int = 20,
    data: str = "stdlib",
    seed: int = 0,
    **others: Any,  # noqa: ANN401 - the harness hands on every model argument
) -> dict[str, Dataset]:
    """`needles` prompts of `characters` of the test split of `data`, each with its own fact at `depth` (0 first, 1
    last) of it and a question for it at the end. Raises `ConfigError` where the text is too short for one.
    """
    text = "\n\n".join(document.text for document in load_corpus(data, None, default="test").documents)
    if len(text) < characters or characters < 1 or needles < 1:
        raise ConfigError(
            f"pqkv_needle: {needles} texts of {characters} characters cannot be cut of {len(text)} of {data}; lower "
            "characters, or name more text as data"
        )
    rows = []
    for number, start in enumerate(np.linspace(0, len(text) - characters, needles).astype(int)):
        draw = np.random.default_rng([seed, number])  # the same facts and texts at every depth
        fact = code_fact(f"{draw.choice(FIRST)}-{draw.choice(SECOND)}", int(draw.integers(10000, 100000)))
        filler = text[start : start + characters]
        at = filler.rfind("\n", 0, round(depth * characters)) + 1  # between lines
        prompt = filler[:at] + fact.statement + filler[at:] + fact.question
        rows.append({"prompt": prompt, "answer": fact.answer, "depth": depth})
    return {"test": Dataset.from_list(rows)}
