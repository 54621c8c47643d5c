import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqkv.text import Document, is_test
from pqkv.text.splits import Keyed, divide

ENTRIES = st.lists(
    st.builds(
        lambda number, text: Keyed(Document(f"m{number}.py", text), f"m{number}.py"),
        st.integers(0, 200),
        st.sampled_from("abcdefgh"),
    ),
    max_size=40,
)


# the remainders come from sha256sum and long division, not from pqkv
@pytest.mark.parametrize(
    ("path", "expected"),
    [("concurrent/__init__.py", 1), ("xmlrpc/__init__.py", 8), ("json/decoder.py", 3), ("part-4.txt", 0)],
)
def test_the_hash_rule_reads_the_whole_digest_as_one_number(path, expected):
    remainder = int(hashlib.sha256(path.encode()).hexdigest(), 16) % 10
    assert remainder == expected
    assert is_test(path) == (expected == 0)


def test_about_one_key_in_ten_is_test():
    assert 150 < sum(is_test(f"file{number}") for number in range(2000)) < 250


@given(ENTRIES)
def test_calibration_and_test_share_no_text_and_together_are_all(entries):
    calibration, test = divide(entries, "calibration"), divide(entries, "test")
    everything = divide(entries, "all")
    assert not {document.text for document in calibration} & {document.text for document in test}
    assert sorted(calibration + test, key=repr) == sorted(everything, key=repr)
    assert everything == tuple(entry.document for entry in entries)


@given(ENTRIES)
def test_the_key_alone_decides_for_texts_that_occur_once(entries):
    texts = [entry.document.text for entry in entries]
    once = [entry for entry in entries if texts.count(entry.document.text) == 1]
    assert divide(once, "test") == tuple(entry.document for entry in once if is_test(entry.key))


def test_a_copy_of_a_calibration_text_is_never_tested_on():
    test_key = next(name for name in map(str, range(1000)) if is_test(name))
    seen_key = next(name for name in map(str, range(1000)) if not is_test(name))
    entries = [Keyed(Document(key, "the same"), key) for key in (test_key, seen_key)]
    assert divide(entries, "test") == ()
    assert len(divide(entries, "calibration")) == 2


SAVED = "Größe\nof a copy\n"


@pytest.mark.parametrize(
    "copy",
    [
        SAVED.replace("\n", "\r\n"),
        "\ufeff" + SAVED,
        SAVED.rstrip(),
        "\n" + SAVED + " \n",
        unicodedata.normalize("NFD", SAVED),
    ],
)
def test_a_copy_that_was_saved_in_another_form_is_a_copy(copy):
    test_key = next(name for name in map(str, range(1000)) if is_test(name))
    seen_key = next(name for name in map(str, range(1000)) if not is_test(name))
    entries = [Keyed(Document("a", copy), test_key), Keyed(Document("b", SAVED), seen_key)]
    assert divide(entries, "test") == ()
    assert [document.text for document in divide(entries, "calibration")] == [copy, SAVED]


def test_splits_follow_the_key_as_it_stands_whatever_the_form_of_the_text():
    keys = [f"m{number}.py" for number in range(200)]
    for end in ("\n", "\r\n"):
        entries = [Keyed(Document(key, f"text of {key}{end}"), key) for key in keys]
        assert [document.name for document in divide(entries, "test")] == [key for key in keys if is_test(key)]
