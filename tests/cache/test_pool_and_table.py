import logging
from collections import Counter

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pqkv.cache import PagePool, PageTable
from pqkv.errors import CacheError, OutOfPages

CPU = torch.device("cpu")


class Pages(RuleBasedStateMachine):
    """A pool and a table against lists: `rows` are the table's, `held` are pages taken from the pool directly."""

    @initialize(size=st.sampled_from([None, 1, 5, 12]), sequences=st.integers(1, 3))
    def start(self, size, sequences):
        self.pool = PagePool(size, initial=2)
        self.table = PageTable(self.pool, sequences)
        self.rows = [[] for _ in range(sequences)]
        self.held = []

    def owners(self):
        return Counter([page for row in self.rows for page in row] + self.held)

    def free(self):
        return float("inf") if self.pool.max_pages is None else self.pool.max_pages - len(self.owners())

    def expect_out_of_pages(self, act):
        before = self.pool.stats(), [self.table.pages(s) for s in range(len(self.table))], self.owners()
        with pytest.raises(OutOfPages, match="out of pages"):
            act()
        assert before == (self.pool.stats(), [self.table.pages(s) for s in range(len(self.table))], self.owners())

    @rule()
    def allocate(self):
        if self.free() < 1:
            self.expect_out_of_pages(self.pool.allocate)
            return
        page = self.pool.allocate()
        assert page not in self.owners()
        self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data):
        page = data.draw(st.sampled_from(self.held))
        self.pool.share(page)
        self.held.append(page)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        count = data.draw(st.integers(1, len(self.held)))
        pages, self.held = self.held[:count], self.held[count:]
        self.pool.release(pages)

    @rule(data=st.data())
    def ensure(self, data):
        counts = [data.draw(st.integers(0, 5)) for _ in self.rows]
        missing = sum(max(0, count - len(row)) for count, row in zip(counts, self.rows, strict=True))
        if missing > self.free():
            self.expect_out_of_pages(lambda: self.table.ensure(counts))
            return
        taken = set(self.owners())
        self.table.ensure(counts)
        fresh = []
        for s, (row, count) in enumerate(zip(self.rows, counts, strict=True)):
            pages = list(self.table.pages(s))
            assert pages[: len(row)] == row
            assert len(pages) == max(len(row), count)
            fresh += pages[len(row) :]
            self.rows[s] = pages
        assert len(set(fresh)) == len(fresh) == missing
        assert not taken & set(fresh)

    @precondition(lambda self: any(self.rows))
    @rule(data=st.data())
    def own(self, data):
        s = data.draw(st.sampled_from([s for s, row in enumerate(self.rows) if row]))
        index = data.draw(st.integers(0, len(self.rows[s]) - 1))
        page = self.rows[s][index]
        if self.owners()[page] == 1:
            assert self.table.own(s, index) is None
        elif self.free() < 1:
            self.expect_out_of_pages(lambda: self.table.own(s, index))
        else:
            taken = self.owners()
            old, new = self.table.own(s, index)
            assert old == page
            assert new not in taken
            self.rows[s][index] = new

    @precondition(lambda self: len(self.rows) < 6)
    @rule(data=st.data())
    def fork(self, data):
        s = data.draw(st.integers(0, len(self.rows) - 1))
        assert self.table.fork(s) == len(self.rows)
        self.rows.append(list(self.rows[s]))

    @rule(data=st.data())
    def select(self, data):
        chosen = data.draw(st.lists(st.integers(0, len(self.rows) - 1), min_size=1, max_size=5))
        assert self.table.select(chosen) == len(chosen) - 1
        self.rows = [list(self.rows[s]) for s in chosen]

    @rule(data=st.data())
    def truncate(self, data):
        counts = [data.draw(st.integers(0, 5)) for _ in self.rows]
        self.table.truncate(counts)
        self.rows = [row[:count] for row, count in zip(self.rows, counts, strict=True)]

    @rule()
    def clear(self):
        self.table.clear()
        self.rows = [[] for _ in self.rows]

    @invariant()
    def the_table_is_as_the_model(self):
        assert len(self.table) == len(self.rows)
        assert [list(self.table.pages(s)) for s in range(len(self.rows))] == self.rows
        assert self.table.nbytes() == 4 * sum(map(len, self.rows))
        tensor = self.table.as_tensor(CPU)
        width = max(1, *map(len, self.rows))
        assert tensor.dtype == torch.int32
        assert tensor.tolist() == [row + [-1] * (width - len(row)) for row in self.rows]

    @invariant()
    def every_page_has_the_owners_it_was_given(self):
        owners, stats = self.owners(), self.pool.stats()
        assert [self.pool.references(page) for page in range(self.pool.capacity)] == [
            owners[page] for page in range(self.pool.capacity)
        ]
        assert stats.used == self.pool.used == len(owners)
        assert stats.free == stats.capacity - stats.used
        assert stats.shared == sum(count > 1 for count in owners.values())
        assert stats.allocations - stats.releases == stats.used
        assert stats.used <= stats.peak_used <= stats.capacity
        assert self.pool.available() == (None if self.pool.max_pages is None else self.free())
        assert self.pool.max_pages in (None, self.pool.capacity)


Pages.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestPages = Pages.TestCase


def test_low_ids_come_first_and_released_ones_come_back():
    pool = PagePool(4)
    assert [pool.allocate() for _ in range(3)] == [0, 1, 2]
    pool.release([1])
    assert pool.allocate() == 1


def test_a_pool_without_a_limit_grows_and_keeps_its_pages():
    pool = PagePool()
    assert pool.capacity == 0
    assert [pool.allocate() for _ in range(9)] == list(range(9))
    assert 9 <= pool.capacity <= 11
    pool.require(10**9)


@pytest.mark.parametrize(
    "act",
    [
        lambda pool: pool.release([0]),
        lambda pool: pool.release([4]),
        lambda pool: pool.share(0),
        lambda pool: pool.share(-1),
    ],
)
def test_a_page_nobody_owns_can_neither_be_shared_nor_released(act):
    pool = PagePool(4)
    with pytest.raises(CacheError, match="is not allocated"):
        act(pool)
    assert pool.stats().free == 4


def test_a_page_released_twice_is_an_error():
    pool = PagePool(4)
    page = pool.allocate()
    pool.release([page])
    with pytest.raises(CacheError, match=f"page {page} is not allocated"):
        pool.release([page])
    assert pool.stats().free == 4


def test_requiring_pages_takes_none():
    pool = PagePool(3)
    pool.require(3)
    with pytest.raises(OutOfPages, match="4 needed, 3 of 3 free"):
        pool.require(4)
    assert pool.stats().used == 0


def test_a_low_pool_is_announced_once_and_only_below_five_per_cent(caplog):
    caplog.set_level(logging.WARNING, "pqkv")
    pool = PagePool(100)
    pages = [pool.allocate() for _ in range(95)]
    assert not caplog.records  # 5 of 100 free
    pages.append(pool.allocate())
    assert [record.getMessage() for record in caplog.records] == ["page pool low: 4 of 100 pages free"]
    pool.release(pages)
    for _ in range(100):
        pool.allocate()
    assert len(caplog.records) == 1


def test_a_pool_that_grows_is_never_low(caplog):
    caplog.set_level(logging.WARNING, "pqkv")
    pool = PagePool(initial=1)
    for _ in range(200):
        pool.allocate()
    assert not caplog.records


def test_the_peak_is_remembered():
    pool = PagePool(8)
    pool.release([pool.allocate() for _ in range(5)])
    assert (pool.stats().peak_used, pool.stats().used) == (5, 0)


def test_a_table_tensor_that_was_handed_out_does_not_change():
    table = PageTable(PagePool(8), 2)
    table.ensure([2, 1])
    tensor = table.as_tensor(CPU)
    kept = tensor.clone()
    assert table.as_tensor(CPU) is tensor  # no change, no copy
    table.ensure([3, 3])
    table.select([1, 1])
    assert torch.equal(tensor, kept)
    assert not torch.equal(table.as_tensor(CPU), kept)


def test_a_sequence_that_is_not_there_changes_nothing():
    table = PageTable(PagePool(8), 2)
    table.ensure([2, 1])
    before = table.pool.stats()
    with pytest.raises(IndexError):
        table.select([0, 2])
    assert table.pool.stats() == before
    assert len(table) == 2


def test_a_pool_grows_at_once_by_what_is_needed_and_by_a_quarter_at_least():
    pool = PagePool()
    pool.reserve(40)
    assert pool.capacity == 40
    assert [pool.allocate() for _ in range(40)] == list(range(40))
    pool.allocate()
    assert pool.capacity == 50
    pool.reserve(100)
    assert (pool.capacity, pool.used) == (141, 41)
