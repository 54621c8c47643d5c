"""A cell is run once, timed, and recorded whatever becomes of it."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pqkv.cell import run_cell
from pqkv.config import digest_of
from pqkv.errors import OutOfPages, RecordError
from pqkv.record import Metric, RecordStore

CONFIG = {"model": "reference", "bits": 4}
FINDING = {"metrics": {"kld_mean": Metric(value=0.1)}, "notes": ["of the cell"]}


def run(measure, **more):
    settings = {"kind": "eval", "config": CONFIG, "seed": 3, "env": {"python": "3.11"}, "git": {"commit": "abc"}}
    return run_cell(measure, **settings, **more)


def raising(error):
    def measure():
        raise error

    return measure


def test_a_record_says_what_was_run_and_what_came_out():
    record = run(lambda: FINDING, notes=["of the grid"])
    assert (record.kind, record.config, record.digest, record.seed) == ("eval", CONFIG, digest_of(CONFIG), 3)
    assert (record.env, record.git) == ({"python": "3.11"}, {"commit": "abc"})
    assert (record.status, record.error) == ("ok", None)
    assert record.metrics == FINDING["metrics"]
    assert record.notes == ["of the cell", "of the grid"]
    assert record.seconds >= 0


def test_what_the_store_holds_is_not_run_again_unless_forced(tmp_path):
    store = RecordStore(tmp_path)
    first = run(lambda: FINDING, store=store)
    assert run(raising(AssertionError), store=store) == first
    again = run(lambda: {"metrics": {}}, store=store, force=True)
    assert again.metrics == {}
    assert store.find(first.digest) == again


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OutOfPages("3 needed, 2 free\nand more"), "3 needed, 2 free and more"),
        (MemoryError("out of memory:\n  asked for 3 GiB.\nSecond."), "out of memory: asked for 3 GiB. Second."),
        (MemoryError(), "MemoryError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_failure_of_the_cells_own_is_recorded_and_tried_again(tmp_path, error, line):
    store = RecordStore(tmp_path)
    record = run(raising(error), store=store, notes=["of the grid"])
    assert (record.status, record.error, record.notes) == ("failed", line, ["of the grid"])
    assert store.failure_path(record.digest).exists()
    assert run(lambda: FINDING, store=store).status == "ok"
    assert not store.failure_path(record.digest).exists()


def test_a_finding_that_is_no_number_fails_its_cell_and_no_more(tmp_path):
    store = RecordStore(tmp_path)
    broken = {**FINDING, "tables": {"by_position": [{"perplexity": float("nan")}]}}
    record = run(lambda: broken, store=store, notes=["of the grid"])
    assert record.status == "failed"
    assert record.error == "tables.by_position[0].perplexity is nan: a record holds finite numbers only"
    assert record.notes == ["of the grid"]
    assert run(lambda: FINDING, store=store).status == "ok"


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("4"), KeyboardInterrupt()])
def test_any_other_error_is_raised_and_leaves_no_record(tmp_path, error):
    with pytest.raises(type(error)):
        run(raising(error), store=RecordStore(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_damaged_record_is_no_failure_of_the_cell(tmp_path):
    store = RecordStore(tmp_path)
    store.path(digest_of(CONFIG)).write_text("{}")
    with pytest.raises(RecordError, match="is not a sound record"):
        run(lambda: FINDING, store=store)


def test_of_two_that_want_a_record_one_measures_and_the_other_finds_it(tmp_path):
    calls = []

    def slowly():
        calls.append(1)
        time.sleep(0.5)
        return FINDING

    with ThreadPoolExecutor(2) as both:
        first, second = both.map(lambda _: run(slowly, store=RecordStore(tmp_path)), range(2))
    assert first == second
    assert len(calls) == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"{first.digest}.json"]


def test_a_cell_that_fails_gives_its_lock_back(tmp_path):
    with pytest.raises(AssertionError):
        run(raising(AssertionError()), store=RecordStore(tmp_path))
    assert list(tmp_path.iterdir()) == []
