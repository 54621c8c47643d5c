"""What the tests of the trainer share: made-up texts, and small helpers."""

import json
import random

import torch
from refmodel import tokens
from refmodel.batches import Batches
from refmodel.facts import FactWriter
from refmodel.recipe import TINY

WORDS = [
    "amber", "falcon", "silver", "harbor", "willow", "engine", "lantern", "meadow", "anchor", "canyon", "violin",
    "beacon", "otter", "hollow", "crimson",
]  # fmt: skip
TEXT = 60_000  # ids from here on are text: no tokenizer here has as many


def made_texts(count=150):
    draw = random.Random(0)
    for number in range(count):
        key, code = f"{draw.choice(WORDS)}-{draw.choice(WORDS)}", draw.randrange(10_000, 100_000)
        words = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(5, 120)))
        yield (
            f"Text {number}.\nRemember: the code of {key} is {code}.\n{words}\n"
            f"Question: what is the code of {key}? Answer: {code}\n"
        )


def encoder(tokenizer):
    return lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def batches(folder, recipe=TINY):
    tokenizer = tokens.load_tokenizer(folder / "tokenizer")
    file = tokens.write_tokens(folder, iter(()), tokenizer, lambda documents, count: None)
    return Batches(
        recipe, file, FactWriter(encoder(tokenizer), json.loads((folder / "words.json").read_text())), folder
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
