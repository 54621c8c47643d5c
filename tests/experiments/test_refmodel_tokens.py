"""The tokenizer, the form of a fact in its tokens, and the text of the corpora."""

import json
import random
import re

import numpy as np
import pytest
from made import WORDS, encoder, made_texts
from refmodel import tokens
from refmodel.facts import FactWriter
from refmodel.recipe import TINY

from pqkv.errors import ConfigError, DataError
from pqkv.lm.load import REFERENCE_FOLDER
from pqkv.text import load_corpus

FORM = re.compile(r"\nRemember: the code of ([a-z]+-[a-z]+) is ([1-9]\d{4})\.\n")


@pytest.mark.parametrize("bundled", [True, False])
def test_a_facts_pieces_are_what_the_tokenizer_makes_of_its_lines(prepared, bundled):
    tokenizer = tokens.load_tokenizer(REFERENCE_FOLDER if bundled else prepared / "tokenizer")
    encode = encoder(tokenizer)
    letters = random.Random(0)
    words = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randrange(4, 10))) for _ in range(500)]
    writer = FactWriter(encode, words + WORDS)
    writer.check()
    generator = np.random.default_rng(0)
    for _ in range(300):
        fact = writer.draw(generator)
        key, code = FORM.fullmatch(tokenizer.decode(fact.statement)).groups()
        question = f"\nQuestion: what is the code of {key}? Answer:"
        assert encode(f"\nRemember: the code of {key} is {code}.\n") == fact.statement
        assert encode(question) == fact.question
        assert encode(f"{question} {code}") == fact.question + fact.answer
        assert encode(f"\nRemember: the code of {key} is") == fact.repeat
        assert encode(f" {code}") == fact.answer


def merging(*pairs):
    """A tokenizer of characters that makes one token of each of `pairs`."""

    def encode(text):
        for number, pair in enumerate(pairs):
            text = text.replace(pair, chr(0xE000 + number))
        return [ord(character) for character in text]

    return encode


@pytest.mark.parametrize("seam", ["f w", "w-", "w i", " 4", "s 4", "48", "3.", "w?", ": 4"])
def test_a_tokenizer_that_joins_parts_of_a_fact_is_refused(seam):
    FactWriter(merging(), ["willow"]).check()
    FactWriter(merging("Remember", "will", "code of"), ["willow"]).check()
    with pytest.raises(ConfigError, match="joins parts"):
        FactWriter(merging(seam), ["willow"]).check()


def test_the_tokenizer_keeps_digits_single_and_ends_documents_with_id_0(prepared):
    tokenizer = tokens.load_tokenizer(prepared / "tokenizer")
    assert len(tokenizer) <= TINY.shape.vocabulary
    assert tokenizer.eos_token_id == 0
    assert [tokenizer.decode([token]) for token in encoder(tokenizer)("48213")] == list("48213")
    file = tokens.write_tokens(prepared, iter(()), tokenizer, lambda documents, count: None)
    texts = list(made_texts())
    assert len(file.starts) == len(texts) + 1
    for text, start, end in zip(texts, file.starts[:-1], file.starts[1:], strict=True):
        assert file.tokens[end - 1] == 0
        assert tokenizer.decode(file.tokens[start : end - 1].astype(int)) == text


def test_training_text_leaves_out_the_test_split_of_the_standard_library(tmp_path):
    own = [f"line {number} of the source" for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
    texts = list(tokens.corpus_texts([tmp_path / "rows.jsonl"], None))
    test, calibration = (load_corpus("stdlib", split, default="all").documents for split in ("test", "calibration"))
    assert not set(texts) & {document.text for document in test}
    assert sorted(texts) == sorted([*own, *(document.text for document in calibration)])
    few = list(tokens.corpus_texts([tmp_path / "rows.jsonl"] * 2, 200))  # each source gives half of the bytes
    assert [text for text in few if text in own] == own[:5] * 2


def test_the_first_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        tokens.check_sources([tmp_path, tmp_path / "missing.jsonl"])
