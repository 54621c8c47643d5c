"""What gives way where a backend, pages or memory do not suffice: said once, recorded; a failure with fallbacks off."""

import logging

import pytest
import torch
from grids import run

from pqkv.errors import KernelError
from pqkv.kernels import choose_backend, register_backend, registry
from pqkv.quality.modes import coded_states
from pqkv.record import RecordStore


def test_a_cell_that_fails_is_recorded_and_the_grid_goes_on(base, tmp_path):
    store = RecordStore(tmp_path)
    grid = {**base, "mode": ("token", "exact-schedule"), "max_pages": 1, "fallback": False}
    failed, fine = run(grid, store)
    assert (failed.status, fine.status) == ("failed", "ok")
    assert "out of pages" in failed.error
    assert failed.metrics == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"{failed.digest}.failure.json", f"{fine.digest}.json"]
    )
    # a failure is tried again, a success is not
    told = []
    again = run(grid, store, report=told.append)
    assert again[1] == fine
    assert {news.cell for news in told} <= {1}
    assert again[0].status == "failed"
    assert again[0].started_at >= failed.started_at


def test_pages_that_run_out_give_way_to_a_contiguous_cache(base):
    grid = {**base, "mode": ("token",), "windows": 2}
    (paged,) = run(grid)
    (fallen,) = run({**grid, "max_pages": 1})
    assert fallen.status == "ok"
    assert fallen.metrics["kld_mean"] == paged.metrics["kld_mean"]
    assert [note for note in fallen.notes if "a contiguous cache ran instead" in note]


def test_memory_that_runs_short_gives_way_to_single_windows(base, monkeypatch):
    grid = {**base, "mode": ("token",), "windows": 2}
    (together,) = run(grid)

    def short_of_memory(lm, ids, *args, **more):
        if len(ids) > 1:
            raise torch.OutOfMemoryError
        return coded_states(lm, ids, *args, **more)

    monkeypatch.setattr("pqkv.quality.cell_run.coded_states", short_of_memory)
    (single,) = run(grid)
    assert single.metrics["kld_mean"].value == pytest.approx(together.metrics["kld_mean"].value, rel=1e-3)
    assert [note for note in single.notes if "they ran one by one" in note]
    (failed,) = run({**grid, "fallback": False})
    assert failed.status == "failed"


@pytest.mark.parametrize("mode", ["token", "chunk"])
def test_a_backend_that_cannot_run_is_said_once_in_the_note_of_the_record(base, caplog, mode):
    """However many batches, and with them caches, a cell takes."""
    caplog.set_level(logging.WARNING, logger="pqkv")
    grid = {**base, "mode": (mode,), "windows": 12, "context": (60,), "dtype": "float64", "metrics": ("kld",)}
    (record,) = run({**grid, "backend": "cpu"})
    assert record.config["backend"] == "reference"
    assert [note for note in record.notes if "coded" not in note] == [
        "backend 'cpu' cannot run: it computes in float32 and the model in float64; 'reference' ran instead"
    ]
    assert caplog.messages == []
    assert record.metrics == run({**grid, "backend": "reference"})[0].metrics


def test_without_fallbacks_a_backend_that_cannot_run_is_an_error(base):
    with pytest.raises(KernelError, match="backend 'cpu' cannot run"):
        run({**base, "mode": ("token",), "dtype": "float64", "backend": "cpu", "fallback": False})


def test_a_record_names_what_computed_its_prefills(base):
    """Backend `cuda` leaves several queries at once to torch: not silently, and not where there are none."""
    one = choose_backend("cpu", torch.device("cpu"), torch.float32).run
    register_backend("one-query", lambda: one, prefill="reference")
    try:
        grid = {**base, "metrics": ("kld",), "context": (60,), "backend": "one-query", "fallback": False}
        (chunk,), (token,) = run({**grid, "mode": ("chunk",)}), run({**grid, "mode": ("token",)})
    finally:
        del registry._ENTRIES["one-query"]
    named = [[note for note in record.notes if "are of 'reference'" in note] for record in (chunk, token)]
    assert (chunk.config["backend"], [len(notes) for notes in named]) == ("one-query", [1, 0])
