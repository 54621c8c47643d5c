"""The table has a row for every record and loses no digit."""

import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.config import digest_of
from pqkv.record import Metric, Record
from pqkv.report import to_frame, write_csv
from pqkv.report.frame import CONFIG_COLUMNS


def test_one_row_per_record_with_config_and_intervals(make, grid):
    frame = to_frame([*grid, make(1, error="broken")])
    assert len(frame) == len(grid) + 1
    assert set(CONFIG_COLUMNS) <= set(frame.columns)
    assert list(frame.columns[:4]) == ["kind", "status", "machine", "digest"]
    row = frame[(frame["bits"] == 4) & (frame["mode"] == "token") & (frame["context"] == 2048)].iloc[0]
    assert (row["kld_mean"], row["kld_mean_low"], row["kld_mean_high"]) == (0.025, 0.0125, 0.05)
    assert row["machine"] == "2 x AMD EPYC, 24 GiB"
    broken = frame[frame["status"] == "failed"].iloc[0]
    assert broken[["kld_mean", "recall"]].isna().all()


def test_metrics_stand_in_the_order_of_the_metrics_table(make):
    metrics = {name: Metric(value=1.0) for name in ("recall", "agreement_at_5", "perplexity", "agreement_at_3")}
    names = [name for name in to_frame([make(metrics=metrics)]).columns if name in metrics]
    assert names == ["perplexity", "agreement_at_3", "agreement_at_5", "recall"]


def test_a_missing_integer_does_not_turn_its_column_into_floats(make, tmp_path):
    path = write_csv([make(), make(2, context=None)], tmp_path / "summary.csv")
    text = pd.read_csv(path, dtype=str)
    assert set(text["context"].dropna()) == {"512"}


def test_csv_keeps_every_digit(make, tmp_path):
    metrics = {"kld_mean": Metric(value=0.1 + 0.2)}
    path = write_csv([make(metrics=metrics)], tmp_path / "summary.csv")
    assert pd.read_csv(path, dtype=str)["kld_mean"].map(float).tolist() == [0.1 + 0.2]


def test_no_records_make_an_empty_table():
    assert len(to_frame([])) == 0


values = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(-1e9, 1e9) | st.text(max_size=4)
configs = st.dictionaries(st.sampled_from([*CONFIG_COLUMNS, "other"]), values | st.lists(values, max_size=2))


@settings(max_examples=60, deadline=None)
@given(st.lists(configs, max_size=4))
def test_any_configuration_has_a_row(found):
    records = [
        Record(
            kind="other", config=config, digest=digest_of(config), env={}, git={}, seed=0, status="ok",
            started_at="2025-01-01T00:00:00Z", seconds=0.0,
        )
        for config in found
    ]  # fmt: skip
    assert len(to_frame(records)) == len(records)
