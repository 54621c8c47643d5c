"""Tokens taken back: a cropped cache goes on as if it had never held them, or is left as it was."""

import pytest
from pairs import kinds, make_pair

from pqkv.errors import CacheError


@kinds
def test_tokens_are_cropped_and_written_again(kind):
    """Right after a page was sealed, too: the page stays and the window fills up behind it once more."""
    pair = make_pair(kind)
    pair.append(9)  # 1 sink, 4 in a page, 4 left; exact: 3 pages
    pair.crop([6, 8])
    for size in (1, 1, 5, 1):
        pair.attend(size)
    pair.crop([n - 2 for n in pair.lengths[0]])
    pair.attend(1)


@kinds
def test_a_crop_that_cannot_be_changes_nothing(kind):
    pair = make_pair(kind)
    pair.append(9)
    for wanted in ([10, 9], [-1, 9], [9]):
        with pytest.raises(CacheError, match="cannot crop"):
            pair.cache.crop(wanted)
    if kind != "exact":
        with pytest.raises(CacheError, match=r"cannot crop sequence 1 from 9 to 4 tokens: 5 of them are sinks"):
            pair.cache.crop([9, 4])
    pair.attend(1)


def test_a_cropped_exact_cache_gives_its_pages_back():
    pair = make_pair("exact", max_pages=6)
    pair.append(12)
    assert pair.cache.pool.stats().free == 0
    pair.crop([12, 4])
    assert pair.cache.pool.stats().free == 2
    pair.append(8, [8, 0])
    pair.attend(0)
