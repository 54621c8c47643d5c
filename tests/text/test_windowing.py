import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqkv.errors import ConfigError, DataError
from pqkv.text import Corpus, Document, TokenStream, documents_in, tokenize, windows


def numbered(size):
    corpus = Corpus("numbers", "test", (Document("d", "x"),))
    return TokenStream(np.arange(size, dtype=np.int64), np.zeros(1, dtype=np.int64), corpus)


@given(st.integers(1, 200), st.integers(1, 20), st.none() | st.integers(1, 30))
def test_windows_are_whole_disjoint_in_order_and_show_the_stream(size, length, count):
    stream = numbered(size)
    available = size // length
    if available == 0:
        with pytest.raises(DataError):
            windows(stream, length, count)
        return
    cut = windows(stream, length, count)
    assert len(cut.starts) == min(available, count or available)
    assert cut.tokens.shape == (len(cut.starts), length)
    assert cut.tokens.dtype == cut.starts.dtype == np.int64
    assert (np.diff(cut.starts) >= length).all()
    assert (cut.starts % length == 0).all()
    assert cut.starts[-1] + length <= size
    for start, row in zip(cut.starts.tolist(), cut.tokens.tolist(), strict=True):
        assert row == list(range(start, start + length))


@given(st.integers(1, 300), st.integers(1, 40))
def test_windows_are_spread_evenly_over_all_that_exist(available, count):
    starts = windows(numbered(available * 3 + 2), 3, count).starts.tolist()
    if count <= available:
        assert starts == [3 * (index * available // count) for index in range(count)]
    else:
        assert starts == [3 * index for index in range(available)]
    gaps = np.diff(starts)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 3


def test_no_count_means_every_whole_window():
    assert windows(numbered(11), 3, None).starts.tolist() == [0, 3, 6]


def test_windows_are_a_copy_so_that_changing_them_leaves_the_stream_alone():
    stream = numbered(8)
    windows(stream, 4, None).tokens[:] = -1
    assert stream.tokens.tolist() == list(range(8))


def test_a_stream_shorter_than_a_window_says_how_long_it_is_and_what_would_help():
    with pytest.raises(DataError) as caught:
        windows(numbered(7), 8, 2)
    message = str(caught.value)
    assert "numbers (test) has 7 tokens" in message
    assert "--context" in message
    assert "\n" not in message


@pytest.mark.parametrize(("length", "count"), [(0, None), (4, 0), (-1, 1)])
def test_windows_of_nothing_are_refused(length, count):
    with pytest.raises(ConfigError):
        windows(numbered(10), length, count)


TEXTS = st.lists(st.text("ab", max_size=6), min_size=1, max_size=8)
STARTS = st.lists(st.integers(0, 45), max_size=5)


@given(TEXTS, STARTS, st.integers(1, 12), st.sampled_from([None, 0]))
def test_documents_in_windows_are_those_whose_tokens_are_in_them(texts, starts, length, separator):
    corpus = Corpus("c", "all", tuple(Document(str(index), text) for index, text in enumerate(texts)))
    stream = tokenize(corpus, lambda text: [ord(letter) for letter in text], separator)
    owner = []
    for index, text in enumerate(texts):
        owner += [index] * (len(text) + (separator is not None and index < len(texts) - 1))
    covered = {place for start in starts for place in range(start, start + length)}
    touched = sorted({owner[place] for place in covered if place < len(owner)})
    expected = tuple(dict.fromkeys(corpus.documents[index].digest for index in touched))
    assert documents_in(stream, np.asarray(starts, dtype=np.int64), length) == expected


def test_a_document_that_encodes_to_nothing_is_in_no_window():
    corpus = Corpus("c", "all", tuple(Document(name, name) for name in ("a", "", "b", "-")))
    stream = tokenize(corpus, lambda text: [ord(letter) for letter in text if letter != "-"], None)
    assert documents_in(stream, [0], 2) == (corpus.documents[0].digest, corpus.documents[2].digest)


def test_documents_between_the_chosen_windows_are_not_named():
    corpus = Corpus("c", "all", tuple(Document(name, name * 4) for name in "abcd"))
    stream = tokenize(corpus, lambda text: [1] * len(text), None)
    cut = windows(stream, 4, 2)
    assert documents_in(stream, cut.starts, 4) == (corpus.documents[0].digest, corpus.documents[2].digest)
