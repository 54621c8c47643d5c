"""The parts of a step: together they are the step, and their table adds up."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pqkv_cli.main import main

from pqkv.config import BenchConfig
from pqkv.errors import ConfigError
from pqkv.kernels import get_backend
from pqkv.kernels.parts import part_source
from pqkv.kernels.types import Part
from pqkv.metrics import part_metric
from pqkv.record import RecordStore
from pqkv.report import to_frame
from pqkv.report.markdown import markdown
from pqkv.speed import bench as bench_module
from pqkv.speed import timing
from pqkv.speed.bench import bench
from pqkv.speed.breakdown import SUM, WHOLE, breakdown, part_rows
from pqkv.speed.synthetic import decode_inputs
from pqkv.speed.timing import Timing

TINY = {"heads": 4, "kv_heads": 2, "head_dim": 16, "lengths": (300,), "repeats": 7, "backend": "cpu", "page_size": 16,
        "residual": 32}  # fmt: skip
pytestmark = pytest.mark.xdist_group("numba")


@pytest.fixture(autouse=True)
def little_cache(monkeypatch):
    monkeypatch.setattr(timing, "last_level_cache", lambda *_: 4096)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(bench_module, "copy_bandwidth", lambda **_: 1.0)


def config(**more):
    return BenchConfig.parse({**TINY, **more})


@pytest.mark.parametrize("backend", ["cpu-centroids", "cpu-tables"])
@pytest.mark.parametrize("shape", [(8, 8), (4, 6), None])
@pytest.mark.parametrize("window", [None, 60])
def test_the_parts_in_turn_are_the_step(backend, shape, window):
    """Pages by the stages, exact parts by themselves; merged here by log-sum-exp they are the reference's attention."""
    case = decode_inputs(config(batch=(2,), ragged=True), 300, 2, shape, 0)
    args = case.query, case.pages, case.sinks, case.residual
    found = part_source(backend).parts(*args, scale=0.25, window=window)
    results = {part.name: part.run() for part in found}
    stages = ["query" if backend == "cpu-centroids" else "key tables", "scores", "softmax", "values"]
    exact = ["exact part"] if shape else []
    assert list(results) == ["arguments", *(stages if shape else ["exact pages"]), *exact, "merge"]
    outs, lses = zip(*(results[name] for name in [*exact, "merge"]), strict=True)
    weights = np.exp(np.array(lses) - np.logaddexp.reduce(np.array(lses)))
    merged = (np.array(outs) * weights[..., None]).sum(0)
    doubled = replace(case, query=case.query.double())
    expected, _ = get_backend("reference")(
        doubled.query, case.pages, case.sinks, case.residual, scale=0.25, window=window
    )
    np.testing.assert_allclose(merged, expected[:, 0].numpy(), atol=1e-5)


def test_rows_by_hand():
    parts = [Part("a", lambda: None), Part("b", lambda: None, beyond="a")]
    timings = {
        WHOLE: Timing(WHOLE, (10e-3, 20e-3, 30e-3)),
        "a": Timing("a", (1e-3, 2e-3, 6e-3)),
        "b": Timing("b", (4e-3, 8e-3, 9e-3)),  # beyond a: 3, 6, 3
    }
    rows, samples = part_rows(parts, timings)
    assert {row["part"]: (row["median_ms"], row["share"]) for row in rows} == {
        WHOLE: pytest.approx((20, 1)), "a": pytest.approx((2, 0.1)), "b": pytest.approx((3, 0.15)),
        SUM: pytest.approx((8, 0.4)),
    }  # fmt: skip
    assert samples["b"] == pytest.approx([3, 6, 3])
    assert rows[2]["q90_ms"] == pytest.approx(5.4)


def test_a_record_has_the_parts_of_step_and_encoding(tmp_path):
    store = RecordStore(tmp_path)
    coded, exact = breakdown(config(bits=(4, 0)), store)
    names = [row["part"] for row in coded.tables["breakdown"]]
    assert names == [WHOLE, "arguments", "query", "scores", "softmax", "values", "exact part", "merge", SUM,
                     "encode", "flush", "prefill"]  # fmt: skip
    rows = {row["part"]: row for row in coded.tables["breakdown"]}
    assert rows["encode"]["tokens"] == rows["flush"]["tokens"] == 16
    assert rows["prefill"]["tokens"] == 272  # (299 - 4 - 32 + 16) // 16 pages
    assert rows["flush"]["us_per_token"] == pytest.approx(1e3 * rows["flush"]["median_ms"] / 16)
    assert all(row["q10_ms"] <= row["median_ms"] <= row["q90_ms"] for row in rows.values())
    assert rows[SUM]["share"] == pytest.approx(rows[SUM]["median_ms"] / rows[WHOLE]["median_ms"])
    assert coded.metrics["latency_ms"].value == pytest.approx(rows[WHOLE]["median_ms"])
    assert [row["part"] for row in exact.tables["breakdown"]] == [WHOLE, "arguments", "exact pages", "merge", SUM]
    assert list(breakdown(config(bits=(4, 0)), store)) == [coded, exact]
    # what is on the screen is in tables and CSV files too
    frame = to_frame([coded, exact])
    assert frame["part_scores_ms"].tolist()[0] == rows["scores"]["median_ms"]
    assert {part_metric(part) for part in names[1:]} <= set(frame)
    assert "part_scores_ms" in markdown([coded])
    # a race of the same cell is another record: both can lie in one folder
    (raced,) = bench(config(bits=(4,)), store)
    assert raced.digest != coded.digest
    assert len(to_frame(store.load_all())) == 3


def test_a_backend_without_parts_says_so():
    (record,) = breakdown(config(bits=(4,), backend="reference"))
    assert record.status == "failed"
    assert record.error == "the parts of backend 'reference' cannot be told apart; use cpu or cuda"


def test_two_kinds_of_bench_are_one_too_many():
    with pytest.raises(ConfigError, match="ask for one"):
        config(breakdown=True, end_to_end=True)


def test_the_command_prints_every_part(capsys):
    words = ["bench", "--breakdown", "--backend", "cpu", "--heads", "4", "--kv-heads", "2", "--head-dim", "16",
             "--repeats", "3", "--lengths", "300", "--bits", "4", "--page-size", "16", "--residual", "32"]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in ("whole step", "scores", "values", "sum of parts", "flush", "prefill"):
        assert part in out
    assert "each stage alone over the whole cache" in out
