import hashlib
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqkv.text import Corpus, Document
from pqkv.text.documents import printable

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
PAIRS = st.lists(st.tuples(TEXT, TEXT), max_size=4)


def corpus(pairs):
    return Corpus("c", "all", tuple(Document(name, text) for name, text in pairs))


def test_a_documents_digest_is_the_start_of_the_sha256_of_its_text_alone():
    expected = hashlib.sha256("größe\n".encode()).hexdigest()[:16]
    assert Document("a", "größe\n").digest == Document("b", "größe\n").digest == expected


def test_the_corpus_hash_is_sha256_over_length_prefixed_names_and_texts():
    data = b"".join(len(part).to_bytes(8, "big") + part for part in (b"n", "ü".encode(), b"m", b"yz"))
    assert corpus([("n", "ü"), ("m", "yz")]).sha256 == hashlib.sha256(data).hexdigest()


@given(PAIRS, PAIRS)
def test_two_corpora_hash_alike_exactly_when_their_documents_are_the_same(one, other):
    assert (corpus(one).sha256 == corpus(other).sha256) == (one == other)


def test_moving_a_boundary_changes_the_corpus_hash():
    hashes = {corpus(pairs).sha256 for pairs in ([("a", "bc")], [("ab", "c")], [("a", "b"), ("", "c")])}
    assert len(hashes) == 3


def test_a_description_counts_documents_and_utf8_bytes():
    described = Corpus("books", "test", (Document("x", "ä"), Document("y", "abc"))).describe()
    assert set(described) == {"name", "split", "sha256", "documents", "bytes"}
    assert (described["name"], described["split"]) == ("books", "test")
    assert (described["documents"], described["bytes"]) == (2, 5)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("outer", [lambda text: text, str.strip, lambda text: f"{text.strip()}\n"])
def test_a_corpus_is_known_by_the_hash_of_every_form_in_which_all_its_texts_are_saved_alike(end, form, outer):
    texts = ["é\ntwo\n", "\n  three", "four\n\n"]
    other = [(text, unicodedata.normalize(form, outer(text)).replace("\n", end)) for text in texts]
    known = corpus([(text, text) for text in texts]).sha256_of_forms
    assert {corpus(other).sha256, corpus([(text, text) for text in texts]).sha256} <= known
    assert corpus([*other[:2], ("four\n\n", "five")]).sha256 not in known


def test_the_corpus_hash_itself_is_of_the_text_as_it_stands():
    forms = ("a\nb\n", "a\r\nb\r\n", "a\nb", "\ufeffa\nb\n", "a\nb\n\n")
    assert len({corpus([("n", text)]).sha256 for text in forms}) == len(forms)
    assert len({corpus([("n", text)]).documents[0].digest for text in forms}) == 1


@given(st.text())
def test_printable_text_is_one_line_that_utf8_can_hold(text):
    shown = printable(text)
    assert len(shown.splitlines()) <= 1
    shown.encode()


def test_printable_text_keeps_what_can_be_printed():
    assert printable("naïve file.txt") == "naïve file.txt"
    assert printable("a\nb\udcff") == "a\\nb\\udcff"
