"""From text to ids: beginnings, control tokens in text, ids without an embedding."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_lm
from tokenizers_made import spaced, with_added_tokens

from pqkv.errors import DataError, ModelError
from pqkv.lm.tokens import (
    TokenForm,
    check_ids,
    describe_tokens,
    holds_special,
    recorded_form,
    token_form,
    token_stream,
    with_bos,
)
from pqkv.text import Corpus, Document

END = "<|endoftext|>"


def corpus(*texts):
    return Corpus("made", "all", tuple(Document(f"{i}", text) for i, text in enumerate(texts)))


def model(tokenizer):
    return replace(tiny_lm(vocab_size=160), tokenizer=tokenizer, separator=tokenizer.eos_token_id)


def test_auto_does_as_the_tokenizer_does_by_itself(reference):
    assert token_form(model(spaced()), "auto", parse_special=False).bos == 1
    assert token_form(model(spaced(begins=False)), "auto", parse_special=False).bos is None
    assert token_form(reference, "auto", parse_special=False).bos is None  # it has the token and does not add it


def test_always_and_never_are_what_they_say():
    for begins in (True, False):
        lm = model(spaced(begins=begins))
        assert token_form(lm, "always", parse_special=False).bos == 1
        assert token_form(lm, "never", parse_special=False).bos is None


def test_a_beginning_that_the_tokenizer_does_not_have_is_refused():
    tokenizer = spaced()
    tokenizer.bos_token = None
    with pytest.raises(ModelError, match=r"--bos always: .* no token that begins a sequence"):
        token_form(model(tokenizer), "always", parse_special=False)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=1, max_size=5))
def test_every_window_begins_once(rows):
    windows = np.array(rows)
    begun = with_bos(windows, 3)
    assert begun.shape == windows.shape
    assert (begun[:, 0] == 3).all()
    for before, after in zip(windows, begun, strict=True):
        assert list(after) == list(before) if before[0] == 3 else list(after[1:]) == list(before[:-1])
    assert with_bos(windows, None) is windows


def test_text_is_text_unless_control_tokens_are_asked_for(reference):
    text = f"one {END} two"
    assert 0 not in reference.encode(text)
    assert reference.encode(text, parse_special=True).count(0) == 1
    assert reference.tokenizer.decode(reference.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60))
def test_without_control_strings_both_ways_are_the_same(reference, text):
    if END not in text:
        assert reference.encode(text) == reference.encode(text, parse_special=True)


def test_encoding_text_as_text_leaves_the_tokenizer_as_it_was(reference):
    reference.encode(END)
    assert reference.tokenizer(END)["input_ids"] == [0]


def test_a_record_says_how_control_strings_were_taken_where_there_are_any(reference):
    plain, marked = corpus("nothing here"), corpus("nothing", f"but {END} here")
    text, parsed = TokenForm(), TokenForm(parse_special=True)
    assert not holds_special(reference, plain)
    assert recorded_form(reference, plain, text) == recorded_form(reference, marked, parsed) == {}
    assert recorded_form(reference, marked, text) == {"special_tokens": "text"}
    assert recorded_form(reference, plain, TokenForm(bos=5)) == {"bos": 5}
    assert describe_tokens(reference, marked, text)["special_strings"] == "text"
    assert describe_tokens(reference, marked, parsed)["special_strings"] == "parsed"
    assert describe_tokens(reference, plain, parsed)["special_strings"] == "none"


def test_a_record_says_what_separates_documents(reference):
    about = describe_tokens(reference, corpus("a", "b"), TokenForm(bos=7))
    assert (about["documents"], about["separator"], about["separator_id"], about["bos_id"]) == (2, END, 0, 7)
    assert describe_tokens(replace(reference, separator=None), corpus("a"), TokenForm())["separator"] is None


@pytest.mark.parametrize("place", ["text", "separator", "beginning"])
def test_an_id_without_an_embedding_is_named_before_any_forward(place):
    tokenizer = with_added_tokens(spaced(), "<tool>", "<end>")
    lm = model(tokenizer)
    rows = lm.embedding_rows
    assert rows == 160 < len(tokenizer) == 162

    def forward(*args, **kwargs):
        raise AssertionError("the model was run")

    lm.model.forward = forward
    if place == "text":
        with pytest.raises(DataError, match=r"made \(all\): token '<tool>' has id 160, .* has 160 rows .* 162 tokens"):
            token_stream(lm, corpus("a mill", "<tool>"), TokenForm(parse_special=True))
    elif place == "separator":
        with pytest.raises(DataError, match="token '<end>' has id 161"):
            token_stream(replace(lm, separator=161), corpus("a", "b"), TokenForm())
    else:
        tokenizer.bos_token = "<tool>"
        with pytest.raises(DataError, match="beginning-of-sequence token of tiny-llama: token '<tool>' has id 160"):
            token_form(lm, "always", parse_special=False)


def test_the_last_id_with_an_embedding_passes():
    lm = model(spaced())
    check_ids(lm, np.array([0, 159]), "text")
