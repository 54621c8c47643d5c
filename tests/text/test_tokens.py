import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pqkv.text import Corpus, Document, tokenize

SEPARATOR = 999


def encode(text):
    return [ord(letter) for letter in text if letter != "-"]


def corpus(texts):
    return Corpus("c", "all", tuple(Document(f"d{number}", text) for number, text in enumerate(texts)))


def test_a_separator_stands_between_documents_and_not_after_the_last():
    stream = tokenize(corpus(["ab", "c", "de"]), encode, SEPARATOR)
    assert stream.tokens.tolist() == [97, 98, SEPARATOR, 99, SEPARATOR, 100, 101]
    assert stream.document_starts.tolist() == [0, 3, 5]


def test_without_a_separator_documents_follow_one_another():
    stream = tokenize(corpus(["ab", "-", "c"]), encode, None)
    assert stream.tokens.tolist() == [97, 98, 99]
    assert stream.document_starts.tolist() == [0, 2, 2]


def test_token_zero_is_a_separator_like_any_other():
    assert tokenize(corpus(["a", "b"]), encode, 0).tokens.tolist() == [97, 0, 98]


@given(st.lists(st.text("ab-", max_size=5), max_size=6), st.sampled_from([None, SEPARATOR]))
def test_every_document_can_be_read_back_from_where_it_starts(texts, separator):
    stream = tokenize(corpus(texts), encode, separator)
    assert stream.tokens.dtype == stream.document_starts.dtype == np.int64
    assert stream.tokens.ndim == 1
    assert len(stream.document_starts) == len(texts)
    ends = [*stream.document_starts[1:].tolist(), len(stream.tokens)]
    for index, text in enumerate(texts):
        expected = encode(text) + ([separator] if separator is not None and index < len(texts) - 1 else [])
        assert stream.tokens[stream.document_starts[index] : ends[index]].tolist() == expected
