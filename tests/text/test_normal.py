import hashlib
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqkv.text import Document, normal_form, raw_digests

TEXT = st.text(st.sampled_from("ab \t\r\né\u0301e\u2028\ufeff\u3000\u212b"), max_size=20)
PLAIN = "Größe café\nline two\n\n    indented\n"


def raw(text):
    """As digests were before they were of a normal form."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "written",
    [
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        PLAIN.replace("\n", "\r\r\n"),
        "\ufeff" + PLAIN,
        "\ufeff\ufeff\r\n" + PLAIN,
        unicodedata.normalize("NFD", PLAIN),
        PLAIN.rstrip(),
        "\n\t " + PLAIN + " \n\u00a0\n",
        "\ufeff" + unicodedata.normalize("NFD", PLAIN).replace("\n", "\r\n").rstrip(),
    ],
)
def test_how_a_text_was_saved_does_not_make_it_another(written):
    assert normal_form(written) == PLAIN
    assert Document("a", written).digest == Document("b", PLAIN).digest == raw(PLAIN)


@pytest.mark.parametrize("other", [PLAIN.replace("two", "2"), PLAIN.replace("\n\n", "\n"), PLAIN.replace("    ", "  ")])
def test_what_stands_inside_a_text_counts(other):
    assert normal_form(other) != PLAIN
    assert Document("a", other).digest != Document("a", PLAIN).digest


@given(TEXT)
def test_a_normal_form_is_its_own(text):
    assert normal_form(normal_form(text)) == normal_form(text)


def test_every_kind_of_white_space_is_taken_off_the_ends():
    blank = "".join(chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace())
    assert normal_form(f"{blank}a{blank}") == "a\n"


@pytest.mark.parametrize("seen", [PLAIN, PLAIN.rstrip(), "\n  " + PLAIN + " \n", "ascii\nonly", "e\u0301\n\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_the_raw_digest_of_a_text_is_known_again_from_its_other_forms(seen, end, form, mark):
    before = raw(mark + unicodedata.normalize(form, seen).replace("\n", end))
    for tested in (seen, "\ufeff" + seen.replace("\n", "\r\n"), unicodedata.normalize("NFD", seen)):
        assert before in raw_digests(tested)


@pytest.mark.parametrize("seen", [PLAIN, PLAIN.rstrip()])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_raw_digest_is_known_again_where_white_space_was_added_or_taken_away_since(seen, end):
    before = raw(seen.replace("\n", end))
    for tested in (PLAIN, PLAIN.rstrip(), PLAIN + "\n \n", "\n\n" + PLAIN):
        assert before in raw_digests(tested)


@given(TEXT)
def test_whatever_a_text_is_its_raw_digest_is_among_its_own(text):
    assert {raw(text), Document("a", text).digest} <= raw_digests(text)
