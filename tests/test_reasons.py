"""What another library's error says, on one line."""

import pytest

from pqkv.reasons import reason

LONG = "Word" + " after word" * 100


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("plain", "plain"),
        ("", "ValueError"),
        (" \n ", "ValueError"),
        (
            "Could not\n  load it from one of:\n(1) here,\n(2) there.",
            "Could not load it from one of: (1) here, (2) there.",
        ),
        ("The first. The second.\n\nThe third.", "The first. The second. The third."),
        (f"The first is short. {LONG}", "The first is short."),
        (
            "Version 5.20 of x.y is old. See model.norm.weight. " + LONG,
            "Version 5.20 of x.y is old. See model.norm.weight.",
        ),
    ],
)
def test_whole_sentences_are_kept_on_one_line(said, kept):
    assert reason(ValueError(said)) == kept


def test_a_sentence_without_end_is_cut_between_words_and_says_so():
    text = reason(ValueError(LONG))
    assert text.endswith((" after ...", " word ..."))
    assert len(text) <= 404
