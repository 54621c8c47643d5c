"""Splits of the context on the CPU: any number of them gives the same attention, and a record names them all."""

import numpy as np
import pytest
import torch

from pqkv.config import BenchConfig
from pqkv.errors import KernelError
from pqkv.kernels import get_backend
from pqkv.kernels.cpu.decode import step_of
from pqkv.kernels.splits import SplitStep, split_step
from pqkv.speed import splits as module
from pqkv.speed import timing
from pqkv.speed.splits import split_grid
from pqkv.speed.synthetic import decode_inputs

TINY = BenchConfig(heads=4, kv_heads=2, head_dim=16, lengths=(300,), bits=(4,), repeats=3, backend="cpu",
                   page_size=16, residual=32, threads=1)  # fmt: skip
pytestmark = pytest.mark.xdist_group("numba")


@pytest.mark.parametrize("stretches", [1, 3, 16, 40])
def test_any_number_of_splits_is_the_reference(stretches):
    case = decode_inputs(TINY, 300, 1, (8, 8), 0)
    step = step_of(case.query, case.pages, case.sinks, case.residual, scale=0.25, stretches=stretches)
    assert step.stretches == stretches
    step.attend_pages()
    out, lse = step.merge()
    expected, expected_lse = get_backend("reference")(
        case.query.double(), case.pages, case.sinks, case.residual, scale=0.25
    )
    np.testing.assert_allclose(out, expected[:, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse[:, 0].numpy(), atol=1e-5)


def test_a_record_has_a_row_for_every_number_that_leaves_a_page_each(monkeypatch):
    monkeypatch.setattr(timing, "last_level_cache", lambda *_: 4096)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    (record,) = split_grid(TINY, (1, 4, 17, 18))  # 17 pages are sealed
    assert record.status == "ok"
    rows = record.tables["splits"]
    assert [(row["splits"], row["asked"]) for row in rows] == [(1, 1), (4, 4), (17, 17), (1, None)]
    assert [row["chosen"] for row in rows] == [False, False, False, True]
    assert record.metrics["latency_ms"].value == pytest.approx(rows[-1]["median_ms"])


def test_fewer_than_one_split_is_refused_and_no_pages_need_none():
    case = decode_inputs(TINY, 300, 1, (8, 8), 0)
    given = case.query, case.pages, case.sinks, case.residual
    for splits in (0, -1):
        with pytest.raises(KernelError, match=f"{splits} splits: at least one is needed"):
            split_step("cpu", *given, scale=0.25, splits=splits)
    with pytest.raises(KernelError, match="window is 0"):
        split_step("cpu", *given, scale=0.25, splits=1, window=0)
    alone = step_of(case.query, None, case.sinks, case.residual, scale=0.25, stretches=3)
    out, lse = alone.merge()
    expected, expected_lse = get_backend("reference")(case.query.double(), None, case.sinks, case.residual, scale=0.25)
    np.testing.assert_allclose(out, expected[:, 0].numpy(), atol=1e-5)
    np.testing.assert_allclose(lse, expected_lse[:, 0].numpy(), atol=1e-5)


def test_other_backends_take_no_number_of_splits():
    (record,) = split_grid(TINY.model_copy(update={"backend": "reference"}), (1,))
    assert record.error == "backend 'reference' takes no number of splits; use cpu or cuda"


def test_splits_that_change_the_result_get_no_time(monkeypatch):
    def wrong(*args, splits, **how):
        step = split_step(*args, splits=splits, **how)
        return step if splits != 4 else SplitStep(4, lambda: (1.01 * step.run()[0], step.run()[1]))

    monkeypatch.setattr(module, "split_step", wrong)
    (record,) = split_grid(TINY, (1, 4))
    assert record.status == "failed"
    assert "wrong result: 4 splits deviate by 1.0e-02" in record.error


def test_counts_that_come_to_the_same_are_run_once(monkeypatch):
    monkeypatch.setattr(timing, "last_level_cache", lambda *_: 4096)
    monkeypatch.setattr(
        module, "split_step", lambda *args, splits, **how: SplitStep(9, split_step(*args, splits=splits, **how).run)
    )
    (record,) = split_grid(TINY, (1, 4))
    assert [(row["splits"], row["asked"]) for row in record.tables["splits"]] == [(9, 4), (9, None)]
