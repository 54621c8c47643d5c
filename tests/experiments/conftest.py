"""A working folder of the trainer, and its facts."""

import json
import shutil
from pathlib import Path

import pytest
from made import WORDS, encoder, made_texts
from refmodel import tokens
from refmodel.facts import FactWriter, frequent_words
from refmodel.recipe import TINY


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A working folder as `prepare` leaves it, but without the standard library, which takes its time."""
    folder = tmp_path_factory.mktemp("prepared")
    tokenizer = tokens.train_tokenizer(made_texts(), TINY.shape.vocabulary, TINY.shape.positions, 200_000)
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "words.json").write_text(json.dumps(frequent_words(made_texts(), 3000)))
    tokens.write_tokens(folder, made_texts(), tokenizer, lambda documents, count: None)
    return folder


@pytest.fixture
def folder(prepared, tmp_path):
    return Path(shutil.copytree(prepared, tmp_path / "work"))


@pytest.fixture(scope="session")
def writer(prepared):
    """Keys of 225,000 pairs, so that no two facts of a sequence share one."""
    words = [a[:3] + b[:3] for a in WORDS for b in WORDS if a != b]
    return FactWriter(encoder(tokens.load_tokenizer(prepared / "tokenizer")), words)
