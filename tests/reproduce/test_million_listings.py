"""The report's listings run as they stand, and findings that turn where the figures do."""

from copy import deepcopy

import pytest
import torch

from pqkv.codec import Codebook
from pqkv.config import digest_of
from pqkv.record import Record
from pqkv.reproduce.million import copies, reported
from pqkv.reproduce.million.listing import PagedPQCache, PageManager
from pqkv.reproduce.million.tiles import tile_work

HEADS, D = 2, 8
CONFIG = {"tokens": 300, "heads": 2, "head_dim": 128, "seed": 0, "max_pages": 1000, "tiles": [32, 64, 128, 256]}


def made(kind, config, tables):
    return Record(
        kind=kind, config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok",
        started_at="2026-01-01T00:00:00+00:00", seconds=1.0, metrics={}, tables=tables,
    )  # fmt: skip


def book():
    return Codebook(torch.randn(1, 4, 16, 2, generator=torch.Generator().manual_seed(0)))


def decoded(cache, count):
    """Values (count, HEADS, D) of the steps that were made."""
    draw = torch.Generator().manual_seed(1)
    given = torch.randn(count, 2, HEADS, D, generator=draw)
    for keys, values in given:
        cache.decoding_with_pages(None, keys[None, :, None], values[None, :, None])
    return given[:, 1]


def test_pages_hold_the_codes_of_the_tokens_that_left_the_window():
    cache = PagedPQCache(book(), HEADS)
    values = decoded(cache, 128 + 64 + 1)  # two flushes, and a step after each
    assert (cache.residualed_tokens, cache.key_cache.shape[2]) == (65, 128)
    for page, first in zip(cache.value_page_ids, (0, 64), strict=True):
        codes = book().encode(values[None, first : first + 64].transpose(1, 2))[0, 0]
        assert torch.equal(cache.page_manager.get_page(page), codes.T)
    assert torch.equal(cache.value_residual_cache[0, :, :65], values[128:].transpose(0, 1))


@pytest.mark.parametrize("steps", [128, 129, 192, 193, 300])
def test_the_counter_runs_ahead_by_the_tokens_of_every_flush(steps):
    cache = PagedPQCache(book(), HEADS)
    decoded(cache, steps)
    held = flushed = 0
    for _ in range(steps):
        if held == 128:
            held, flushed = held - 64, flushed + 64
        held += 1
    assert cache.seen_tokens == steps + flushed
    assert (cache.fallbacks, cache.residualed_tokens) == (steps, held)


def test_a_page_that_was_registered_would_come_back():
    """What the listing lacks is one line."""
    manager = PageManager(max_pages=3)
    page = manager.allocate_page()
    manager.free_page(page)
    assert page not in manager.free_pages
    manager.allocated_pages[page] = {}
    manager.free_page(page)
    assert page in manager.free_pages
    with pytest.raises(RuntimeError, match="No free pages"):
        [manager.allocate_page() for _ in range(4)]


@pytest.mark.parametrize("tile", [16, 32, 48, 64, 128, 200, 256])
def test_the_work_of_a_tile_is_that_of_its_threads_one_by_one(tile):
    keys, values = [0] * tile, [0] * tile
    for thread in range(tile):
        for _ in range(64):
            keys[thread] += 1
        i = thread
        while i < 128:
            for _ in range(tile):
                values[thread] += 1
            i += tile
    work = tile_work(tile, 128, 64)
    assert (work.steps, work.busy) == (max(keys) + max(values), sum(keys) + sum(values))
    assert work.busy == tile * (64 + 128)
    assert (work.idle == 0) == (128 % tile == 0)


@pytest.fixture(scope="module")
def tables():
    return reported._listed(CONFIG)["tables"]


def verdicts(tables):
    return {row["claim"]: row["holds"] for row in reported.finding_j([made(reported.LISTING, CONFIG, tables)])}


def test_no_record_no_claim():
    assert reported.finding_j([]) == copies.copies_finding([]) == []


def test_what_the_listings_do_contradicts_what_is_said_of_them(tables):
    found = verdicts(tables)
    assert found.pop("tiles of L_t = d tokens") == "not known"
    assert set(found.values()) == {"no"}
    (row,) = tables["pages"]
    assert (row["allocated"], row["recorded"], row["came_back"], row["lasted"]) == (2, 1, 0, 128 + 64 * 500)
    assert {r["pool"]: r["bytes"] for r in tables["pools"]} == {
        "its defaults": 4_096_000, "the pool of its 2.44 MB": 512_000, "its test's": 2560
    }  # fmt: skip


@pytest.mark.parametrize(("table", "row", "better", "claim"), [
    ("steps", None, {"fallbacks": 0}, "a step of decoding attends to pages"),
    ("steps", 0, {"seen": 300}, "seen_tokens counts tokens"),
    ("pages", 0, {"came_back": 2}, "a page that is freed can be allocated again"),
    ("pages", 0, {"lasted": 32768}, "the pool holds the 32,768 tokens that the speed-up is claimed for"),
    ("pools", 0, {"printed": "0.00"}, "the memory benchmark measures the pool"),
])  # fmt: skip
def test_other_figures_would_turn_the_verdict(tables, table, row, better, claim):
    other = deepcopy(tables)
    for changed in other[table] if row is None else [other[table][row]]:
        changed.update(better)
    assert verdicts(other)[claim] == "yes"


@pytest.mark.parametrize(("constant", "value", "claim"), [
    ("TEST_LOG", (*[("a", "passed")] * 4, ("b", "failed")), "80.0% of the integration test passed"),
    ("EXTENDED", 256, "a residual of 128 tokens is twice MILLION's"),
    ("SPLITS_BUILT", (1, 2, 4), "one split up to 64 tokens"),
])  # fmt: skip
def test_other_words_of_the_report_would_too(tables, constant, value, claim, monkeypatch):
    monkeypatch.setattr(reported, constant, value)
    assert verdicts(tables)[claim] == "yes"


@pytest.mark.parametrize(("sectors", "passes", "holds"), [
    (64, 63, ["yes", "yes"]), (65, 64, ["no", "no"]), (256, 4096, ["no", "no"]),
])  # fmt: skip
def test_transactions_of_the_listings_are_judged_at_three_quarters(sectors, passes, holds):
    rows = copies.copy_rows(128, 64, 64)
    assert [row["sectors"] for row in rows] == [256] * 3
    assert [row["store_passes"] for row in rows] == [64, 256, 4096]
    rows[2] |= {"sectors": sectors, "store_passes": passes}
    found = copies.copies_finding([made(copies.COPIES, {}, {"copies": rows})])
    assert [row["holds"] for row in found] == holds
