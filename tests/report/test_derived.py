"""What follows from a record's own figures, by hand."""

import pytest

from pqkv.derived import derived, with_derived
from pqkv.metrics import charge_ms
from pqkv.record import Metric, RecordStore
from pqkv.report import to_frame
from pqkv.report.markdown import markdown

METRICS = {
    "latency_ms": Metric(value=2.0, low=1.9, high=2.2),
    "exact_latency_ms": Metric(value=5.0),
    "speedup": Metric(value=2.5, low=2.0, high=3.0),
    "encode_tokens_per_s": Metric(value=8000.0),
}


def test_a_step_pays_for_keys_and_values_of_every_sequence():
    # 8,000 keys a second: 0.125 ms for the keys of a token, 0.125 ms for its values
    assert charge_ms(8000.0, 1) == pytest.approx(0.25)
    assert charge_ms(8000.0, 2) == pytest.approx(0.5)


def test_charged_figures_by_hand(make):
    # 2 ms and 4 * 0.25 ms are 3 ms; of 2.5x that leaves 2 / 3
    found = derived(make(metrics=METRICS, kind="bench", batch=4))
    assert found["charged_latency_ms"].value == pytest.approx(3.0)
    ratio = found["charged_speedup"]
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((5 / 3, 4 / 3, 2.0))


@pytest.mark.parametrize("missing", ["latency_ms", "speedup", "encode_tokens_per_s"])
def test_without_one_of_the_figures_nothing_follows(make, missing):
    kept = {name: metric for name, metric in METRICS.items() if name != missing}
    assert derived(make(metrics=kept, kind="bench", batch=4)) == {}
    assert set(derived(make(metrics=METRICS, kind="eval"))) == {"coded_share"}  # no batch: not one step of decoding


def test_an_evaluation_without_it_has_the_share_of_codes_by_its_schedule(make):
    short, long, exact = (make(context=n, bits=b) for n, b in ((128, 4), (512, 4), (512, 0)))
    assert derived(short)["coded_share"].value == 0
    assert derived(long)["coded_share"].value == pytest.approx(0.64, abs=0.005)
    assert derived(exact) == {}
    measured = make(metrics={"coded_share": Metric(value=0.5)})
    assert "coded_share" not in derived(measured)


def test_reports_show_what_no_record_holds(make, tmp_path):
    record = make(metrics=METRICS, kind="bench", batch=1)
    RecordStore(tmp_path).write(record)
    (stored,) = RecordStore(tmp_path).load_all()
    assert "charged_speedup" not in stored.metrics
    assert to_frame([stored])["charged_speedup"].tolist() == pytest.approx([2.5 * 2.0 / 2.25])
    assert "| 2.25 | 2.22 [1.78, 2.67] |" in markdown([stored])
    assert with_derived(stored).metrics.keys() - stored.metrics.keys() == {"charged_latency_ms", "charged_speedup"}
