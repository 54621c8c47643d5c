"""Splits of the context on the CPU: any number of them gives the same attention, and a record names them all."""

import numpy as np
import pytest
import torch

from pqkv.config import BenchConfig
from pqkv.kernels import get_backend
from pqkv.kernels.cpu.decode import step_of
from pqkv.speed import timing
from pqkv.speed.stretches import stretch_grid
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
    (record,) = stretch_grid(TINY, (1, 4, 17, 18))  # 17 pages are sealed
    assert record.status == "ok"
    rows = record.tables["splits"]
    assert [(row["splits"], row["chosen"]) for row in rows] == [(1, False), (4, False), (17, False), (1, True)]
    assert record.metrics["latency_ms"].value == pytest.approx(rows[-1]["median_ms"])


def test_other_backends_take_no_number_of_splits():
    (record,) = stretch_grid(TINY.model_copy(update={"backend": "reference"}), (1,))
    assert record.error == "backend 'reference' takes no number of splits; use cpu"
