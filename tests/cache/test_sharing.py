"""Forks, beams and resets: whoever shares pages must never notice."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pairs import KINDS, kinds, make_pair, table_of

from pqkv.errors import CacheError, OutOfPages


class Sharing(RuleBasedStateMachine):
    """Any order of steps, forks, selections and resets, with pages running out in between."""

    @initialize(kind=st.sampled_from([*KINDS]), max_pages=st.sampled_from([None, 6, 12]))
    def start(self, kind, max_pages):
        self.pair = make_pair(kind, max_pages=max_pages)
        self.kind = kind

    def step(self, act, data):
        size = data.draw(st.integers(1, 6))
        padding = data.draw(st.none() | st.just([data.draw(st.integers(0, size)) for _ in range(self.pair.sequences)]))
        before = self.pair.lengths, table_of(self.pair.cache), self.pair.cache.pool.stats()
        try:
            act(size, padding)
        except OutOfPages:
            cache = self.pair.cache
            assert before == ([layer.lengths for layer in cache.layers], table_of(cache), cache.pool.stats())
            self.pair.probe()

    @rule(data=st.data())
    def attend(self, data):
        self.step(self.pair.attend, data)

    @rule(data=st.data())
    def append(self, data):
        self.step(self.pair.append, data)

    @rule(data=st.data())
    def crop(self, data):
        lengths = [data.draw(st.integers(max(0, n - 7), n)) for n in self.pair.lengths[0]]
        before = table_of(self.pair.cache)
        if all(sequence.can_crop(n) for sequence, n in zip(self.pair.naive.layers[0], lengths, strict=True)):
            self.pair.crop(lengths)
        else:
            with pytest.raises(CacheError, match="stay; crop less"):
                self.pair.cache.crop(lengths)
            assert before == table_of(self.pair.cache)

    @precondition(lambda self: self.pair.sequences < 5)
    @rule(data=st.data())
    def fork(self, data):
        self.pair.fork(data.draw(st.integers(0, self.pair.sequences - 1)))

    @rule(data=st.data())
    def select(self, data):
        chosen = data.draw(st.lists(st.integers(0, self.pair.sequences - 1), min_size=1, max_size=4))
        self.pair.select(chosen)

    @rule()
    def reset(self):
        self.pair.reset()
        assert self.pair.cache.pool.stats().used == 0

    @invariant()
    def lengths_agree_and_no_page_is_lost(self):
        cache = self.pair.cache
        assert [layer.lengths for layer in cache.layers] == self.pair.lengths
        owners = Counter(page for row in table_of(cache) for page in row)
        assert cache.pool.stats().used == len(owners)
        assert all(cache.pool.references(page) == count for page, count in owners.items())

    @invariant()
    def each_sequence_has_the_pages_it_needs(self):
        config, (naive, *_) = self.pair.cache.config, self.pair.naive.layers
        needed = {
            "exact": [-(-sequence.length // config.page_size) for sequence in naive],
            "paged": [sequence.coded // config.page_size for sequence in naive],
            "contiguous": [0] * len(naive),
        }
        kind = {"served": "paged", "served contiguous": "contiguous"}.get(self.kind, self.kind)
        assert [len(row) for row in table_of(self.pair.cache)] == needed[kind]


Sharing.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestSharing = Sharing.TestCase


@kinds
@pytest.mark.parametrize("tokens", [3, 8, 14])
def test_parent_and_child_each_go_on_as_if_alone(kind, tokens):
    pair = make_pair(kind, sequences=2)
    pair.append(tokens)
    pair.fork(1)
    for size in (1, 3, 1, 6, 1):
        pair.attend(size)  # other tokens for each
    for size in (1, 2):
        pair.attend(size, [0, size, 0])


def test_a_fork_shares_every_page_and_allocates_none():
    for kind in ("exact", "paged"):
        pair = make_pair(kind, sequences=1)
        pair.append(21)
        before = pair.cache.pool.stats()
        pair.fork(0)
        pair.fork(0)
        after = pair.cache.pool.stats()
        assert (after.used, after.allocations) == (before.used, before.allocations)
        assert after.shared == after.used > 2
        assert len(set(table_of(pair.cache))) == 1


def test_sealed_pages_stay_shared_for_good():
    pair = make_pair("paged", sequences=1)
    pair.append(21)  # 1 sink, 16 coded, 4 exact
    pair.fork(0)
    pair.append(9)
    parent, child = table_of(pair.cache)
    assert parent[:4] == child[:4]
    assert not set(parent[4:]) & set(child[4:])
    assert pair.cache.pool.stats().shared == 4
    pair.attend()


def test_a_partly_filled_page_is_copied_when_it_is_written_in_all_layers():
    pair = make_pair("exact", layers=3, sequences=1)
    pair.append(10)  # pages of 4, 4 and 2
    pair.fork(0)
    pair.attend()  # both write: one copies, the other then is the only owner
    parent, child = table_of(pair.cache)
    assert parent[:2] == child[:2]
    assert parent[2] != child[2]
    stats = pair.cache.pool.stats()
    assert (stats.used, stats.shared) == (4, 2)
    pair.attend()


def test_a_full_page_is_not_copied():
    pair = make_pair("exact", sequences=1)
    pair.append(8)
    pair.fork(0)
    pair.attend()
    stats = pair.cache.pool.stats()
    assert (stats.used, stats.shared) == (4, 2)  # two shared, one new page each


def test_a_page_is_copied_only_for_those_that_write():
    pair = make_pair("exact", sequences=1)
    pair.append(6)
    pair.fork(0)
    pair.fork(0)
    pair.append(1, [0, 1, 1])
    rows = table_of(pair.cache)
    assert rows[0][1] != rows[1][1] == rows[2][1]
    assert pair.cache.pool.stats().used == 3
    pair.attend()
    assert pair.cache.pool.stats().used == 4  # a last page each, after one that all share


@kinds
def test_beams_are_reordered_repeated_and_dropped(kind):
    pair = make_pair(kind, sequences=3)
    pair.append(9, [0, 2, 4])
    for chosen in ([2, 0, 1], [1, 1, 1], [0, 0, 2, 1], [3], [0, 0]):
        pair.select(chosen)
        for size in (1, 4):
            pair.attend(size)


@kinds
def test_after_a_reset_a_cache_is_as_new(kind):
    pair = make_pair(kind)
    pair.append(17)
    pair.fork(0)
    pair.reset()
    assert pair.cache.pool.stats().used == 0
    assert pair.cache.memory().pages == 0
    assert [layer.lengths for layer in pair.cache.layers] == [[0] * 3] * 2
    for size in (1, 9, 1):
        pair.attend(size)


def test_dropping_a_sequence_releases_the_pages_only_it_had():
    pair = make_pair("paged")
    pair.append(13)
    pair.fork(0)
    used = pair.cache.pool.stats().used
    pair.select([0, 1])
    assert pair.cache.pool.stats().used == used
    pair.select([0])
    assert pair.cache.pool.stats().used == used // 2


@pytest.mark.parametrize("sequence", [-1, 2])
def test_a_sequence_that_is_not_there_cannot_be_forked(sequence):
    pair = make_pair("paged")
    with pytest.raises(CacheError, match=f"cannot fork sequence {sequence} of 2"):
        pair.cache.fork(sequence)


def test_sequences_that_fork_after_a_failed_step_seal_into_pages_of_their_own():
    """The failed step had reserved a page for what it was to seal: nobody may inherit it."""
    pair = make_pair("paged", sequences=1)
    pair.append(8)
    store = pair.cache.layers[0].store
    works, store.seal = store.seal, lambda *_: (_ for _ in ()).throw(MemoryError())
    _, keys, values = pair.tokens(4)
    with pytest.raises(MemoryError):
        pair.cache.layers[0].append(keys, values)
    store.seal = works
    pair.fork(0)
    assert pair.cache.pool.stats().shared == 0
    for size in (4, 1):
        pair.attend(size)
    pages = [set(row) for row in table_of(pair.cache)]
    assert pages[0].isdisjoint(pages[1])


@kinds
def test_a_cache_holds_no_graph(kind):
    pair = make_pair(kind)
    for _ in range(12):
        query, keys, values = (t.requires_grad_() for t in pair.tokens(1))
        pair.cache.layers[0].append(keys, values)
        assert not pair.cache.layers[0].attend(query.detach(), keys, values, scale=1.0).requires_grad


@pytest.mark.parametrize("kind", ["paged", "contiguous"])  # an exact cache keeps what it is given, as DynamicCache does
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_are_refused_before_they_are_kept(kind, bad):
    pair = make_pair(kind, layers=1)
    pair.append(3)
    layer = pair.cache.layers[0]
    for index, name in enumerate(("keys", "values")):
        tokens = pair.tokens(2)
        tokens[1 + index][1, 0, 1, 3] = bad
        with pytest.raises(CacheError, match=f"{name} that are NaN or infinite"):
            layer.append(*tokens[1:])
        with pytest.raises(CacheError, match=f"{name} that are NaN or infinite"):
            layer.attend(*tokens, scale=1.0)
    pair.attend(1)
    _, keys, values = pair.tokens(2)
    keys[1, :, 0] = bad
    layer.append(keys, values, [0, 1])  # what padding holds is nobody's business
