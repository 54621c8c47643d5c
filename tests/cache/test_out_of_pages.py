"""A pool that is exhausted: told before anything changes, and mended by giving pages back."""

import pytest
from pairs import make_pair, table_of

from pqkv.errors import OutOfPages


@pytest.mark.parametrize("kind", ["exact", "paged"])
@pytest.mark.parametrize("by", ["append", "attend"])
def test_out_of_pages_changes_nothing_and_a_retry_after_release_works(kind, by):
    pair = make_pair(kind, max_pages=5)
    pair.append(10, [0, 3])
    with pytest.raises(OutOfPages, match=r"5 free|of 5 free"):
        getattr(pair, by)(16)
    pair.probe()
    before = pair.lengths, table_of(pair.cache), pair.cache.pool.stats()
    with pytest.raises(OutOfPages):
        getattr(pair, by)(40, [0, 40])
    assert before == ([layer.lengths for layer in pair.cache.layers], table_of(pair.cache), pair.cache.pool.stats())
    pair.probe()
    pair.select([1])
    getattr(pair, by)(10)
    pair.attend()


def test_out_of_pages_for_a_copy_on_write_is_raised_before_the_copy():
    pair = make_pair("exact", sequences=1, max_pages=2)
    pair.append(6)
    pair.fork(0)
    before = table_of(pair.cache)
    with pytest.raises(OutOfPages, match="1 needed, 0 of 2 free"):
        pair.attend()
    assert table_of(pair.cache) == before
    pair.probe()
    pair.select([1])  # its only owner now: no copy is needed
    pair.attend()


def test_new_pages_and_copies_are_counted_together_before_either_is_made():
    pair = make_pair("exact", sequences=1, max_pages=3)
    pair.append(6)
    pair.fork(0)
    before = table_of(pair.cache), pair.cache.pool.stats()
    with pytest.raises(OutOfPages, match="2 needed, 1 of 3 free"):
        pair.attend(3, [0, 3])  # a copy of the shared page, and one page more
    assert (table_of(pair.cache), pair.cache.pool.stats()) == before
    pair.probe()


def test_the_last_page_of_a_pool_can_be_used():
    pair = make_pair("exact", sequences=1, max_pages=3)
    pair.append(11)
    pair.attend()
    with pytest.raises(OutOfPages, match="1 needed, 0 of 3 free"):
        pair.attend()
