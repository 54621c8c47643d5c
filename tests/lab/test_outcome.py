"""Rows of a lab, their differences, tables and pictures."""

import csv

import numpy as np
import pytest
from made_records import record

from pqkv.errors import RecordError
from pqkv.lab.differences import differences
from pqkv.lab.outcome import floors, groups, markdown, write_outcome
from pqkv.lab.pareto import write_pareto
from pqkv.record import Metric, Record


def measured(bits, klds, **more):
    made = record(bits, 0.01, float(np.mean(klds)), **more)
    sides = {"key_bits": Metric(value=bits), "value_bits": Metric(value=bits), "cache_bytes": Metric(value=1.0)}
    return made.model_copy(update={"samples": {"kld_mean": list(klds)}, "metrics": {**made.metrics, **sides}})


WINDOWS = np.linspace(1, 3, 40)  # what is hard for one method is hard for all
FOUND = {
    "a": measured(4, 0.01 * WINDOWS),
    "b": measured(3, 0.011 * WINDOWS),
    "c": measured(8, 0.01 * WINDOWS[::-1].copy()),
}


def test_pairs_tell_what_means_alone_would_not():
    gaps = differences(FOUND, "a")
    assert gaps["b"].value == pytest.approx(0.001 * WINDOWS.mean())
    assert gaps["b"].low > 0  # a tenth more in every window: told, though windows differ threefold
    assert gaps["c"].value == pytest.approx(0)
    assert gaps["c"].low < 0 < gaps["c"].high
    assert (gaps["b"].told, gaps["c"].told) == (True, False)


def test_more_methods_widen_every_interval():
    rng = np.random.default_rng(0)
    noisy = {str(i): measured(4, 0.01 + 0.001 * rng.standard_normal(40), codec="kivi") for i in range(21)}
    few, many = differences({k: noisy[k] for k in ("0", "1")}, "0")["1"], differences(noisy, "0")["1"]
    assert many.high - many.low > 1.3 * (few.high - few.low)
    # of twenty that do not differ hardly one is told
    assert sum(gap.told for gap in differences(noisy, "0").values()) <= 1


def test_other_windows_make_no_pairs():
    with pytest.raises(RecordError, match="differ in context"):
        differences({"a": FOUND["a"], "d": measured(4, WINDOWS, context=2048)}, "a")


def test_a_single_window_tells_nothing():
    gap = differences({"a": measured(4, [0.1]), "b": measured(3, [0.2])}, "a")["b"]
    assert (gap.value, gap.told) == (pytest.approx(0.1), False)


@pytest.fixture
def group():
    (found,) = groups(list(FOUND.values()), {r.digest: name for name, r in FOUND.items()}, "a")
    return found


def test_rows_stand_by_bits_and_the_front_is_what_nothing_beats(group):
    assert [row.method for row in group.rows] == ["b", "a", "c"]
    assert [row.method for row in group.best()] == ["b", "a"]
    assert group.name == "a-1024-4-0"
    assert "all-coded, 4 sinks, 4 windows of 1024 tokens" in group.title


def test_tables_hold_every_row_and_the_same_figures(group, tmp_path):
    paths = write_outcome([group], tmp_path)
    rows = list(csv.DictReader(paths[0].read_text().splitlines()))
    assert [row["method"] for row in rows] == ["b", "a", "c"]
    assert [float(row["kld_mean"]) for row in rows] == [row.kld.value for row in group.rows]
    assert rows[1]["difference"] == ""
    assert float(rows[0]["difference_low"]) > 0
    assert rows[0]["codec"] == "int:bits=3"
    text = paths[1].read_text()
    assert text == markdown(group)
    assert text.count("\n| ") == 5
    assert markdown(group, ["a"]).count("\n| ") == 3


def test_a_picture_for_each_group_of_more_than_one(group, tmp_path):
    paths = write_pareto([group], tmp_path, floors={group.name: 0.001}, bound={3.0: 0.004, 4.0: 0.001})
    assert [path.name for path in paths] == ["pareto-a-1024-4-0.png"]
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
    assert paths[0].read_bytes() != write_pareto([group], tmp_path)[0].read_bytes()
    alone = groups([FOUND["a"]], {FOUND["a"].digest: "a"}, None)
    assert write_pareto(alone, tmp_path) == []


def test_the_floor_is_that_of_the_same_windows_or_else_of_the_same_text(group):
    own = {key: group.config[key] for key in ("model", "data", "split", "context", "windows")}
    made = [
        floor({**own, **change}, kld) for change, kld in (({}, 0.0013), ({"context": 512}, 0.5), ({"windows": 9}, 0.6))
    ]
    assert floors(made, [group]) == {group.name: 0.0013}
    assert floors(made[1:], [group]) == {group.name: 0.6}
    assert floors(made[1:2], [group]) == {}


def floor(config, kld):
    import json

    from pqkv.config import digest_of

    config = {**config, "floor": "bfloat16 arithmetic", "mode": "noise-floor"}
    return Record(
        kind="eval", config=config, digest=digest_of(json.loads(json.dumps(config))), env={}, git={}, seed=0,
        status="ok", started_at="2026-01-01T00:00:00Z", seconds=1, metrics={"kld_mean": Metric(value=kld)},
    )  # fmt: skip
