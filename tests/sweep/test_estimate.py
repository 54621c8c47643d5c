"""What a cell will take, from what cells like it took."""

import pytest
from sweep_made import eval_record, folder_of

from pqkv.sweep.config import SweepConfig
from pqkv.sweep.estimate import Estimator
from pqkv.sweep.outcome import Outcome, Outcomes
from pqkv.sweep.past import Past, read_past, usual_start

MB = 1_000_000


def cells(**product):
    return list(SweepConfig.parse({"command": "eval", "product": product}).cells())


def past(cell, seconds, peak=None, machine="here"):
    return Past(cell.alike, cell.context, cell.tokens, seconds, 0.0, peak, machine)


def took(cell):
    """A law that the estimates do not know of: a constant, a part by tokens, one by tokens and context."""
    return 0.5 + 1e-4 * cell.tokens + 2e-8 * cell.tokens * cell.context


def test_a_cell_that_ran_takes_what_it_took():
    (cell,) = cells(context=[512])
    found = Estimator([past(cell, s, peak) for s, peak in ((2.0, 500 * MB), (4.0, 600 * MB), (3.0, None))]).of(cell)
    assert (found.seconds, found.peak) == (3.0, 600 * MB)
    assert found.basis == "3 cells with the same settings"


def test_other_sizes_are_scaled_to_by_tokens_and_context():
    known, wanted = cells(context=[256, 1024, 2048, 4096]), cells(context=[512, 8192, 16384])
    estimator = Estimator([past(cell, took(cell)) for cell in known])
    for cell in wanted:
        found = estimator.of(cell)
        assert found.seconds == pytest.approx(took(cell), rel=1e-3)
        assert found.basis == "4 cells with the same settings, scaled from 256 tokens to 4,096"


def test_of_one_size_time_goes_with_tokens_and_memory_stays():
    one, other = cells(context=[512, 1024])
    found = Estimator([past(one, 2.0, 700 * MB)]).of(other)
    assert (found.seconds, found.peak) == (pytest.approx(4.0), 700 * MB)
    assert found.basis == "1 cell with the same settings, scaled from 512 tokens"


def test_memory_grows_past_what_forwards_are_filled_to():
    known, wanted = cells(context=[512, 4096, 8192]), cells(context=[1024, 6144, 16384])
    peaks = dict(zip((512, 4096, 8192), (600 * MB, 610 * MB, 810 * MB), strict=True))
    estimator = Estimator([past(cell, 1.0, peaks[cell.context]) for cell in known])
    assert [estimator.of(cell).peak for cell in wanted] == [610 * MB, 710 * MB, 1210 * MB]


def test_memory_of_timed_cells_grows_from_the_shortest_on():
    known, wanted = ([*SweepConfig.parse({"command": "bench", "product": {"lengths": lengths}}).cells()]
                     for lengths in ([512, 2048], [1024, 4096]))  # fmt: skip
    estimator = Estimator([past(known[0], 1.0, 600 * MB), past(known[1], 1.0, 660 * MB)])
    assert [estimator.of(cell).peak for cell in wanted] == [620 * MB, 740 * MB]


def test_the_closest_likeness_speaks_and_says_which_it_is():
    four, two = cells(context=[512], bits=[4, 2])
    (other_mode,) = cells(context=[512], mode=["token"])
    estimator = Estimator([past(four, 2.0)])
    assert "the same settings" in estimator.of(four).basis
    assert "the same model, mode and metrics" in estimator.of(two).basis
    assert estimator.of(other_mode).basis == "1 cell with the same model"
    (foreign,) = list(
        SweepConfig.parse({"command": "eval", "fixed": {"model": "x"}, "product": {"context": [512]}}).cells()
    )
    found = estimator.of(foreign)
    assert (found.seconds, found.peak, found.basis) == (None, None, "no cell like it was measured")


def test_the_past_is_read_from_outcomes_and_from_records_that_none_speaks_of(tmp_path):
    (cell,) = cells(context=[512], windows=[2])
    mine = eval_record([0.1, 0.2], metrics=["kld"], dtype="float32", device="cpu")
    alone = eval_record([0.1, 0.2], context=64, metrics=["kld"], dtype="float32", device="cpu")
    folder_of(tmp_path, mine, alone)

    def outcome(digest, **more):
        fields = {
            "digest": digest, "command": "eval", "settings": {}, "run": 1, "context": 512, "tokens": 1024,
            "alike": cell.alike, "status": "ok", "seconds": 5.0, "starting": 7.0, "peak_rss": 400, "measured": True,
            "records": (mine.digest,), "machine": "here", "threads": 1, "attempts": 1, "finished_at": "",
        }  # fmt: skip
        Outcomes(tmp_path).write(Outcome(**fields | more))

    outcome("0" * 12)
    outcome("1" * 12, measured=False, seconds=0.1, records=())  # found, not measured: says nothing of its time
    outcome("2" * 12, machine="elsewhere", records=())
    found = read_past([tmp_path], lambda: "here")
    assert [one.seconds for one in found] == [5.0]
    assert usual_start(found) == 7.0
    assert len(read_past([tmp_path], lambda: "nowhere")) == 3  # with what the record alone says
    (Outcomes(tmp_path).path("0" * 12)).write_text("{")
    assert Outcomes(tmp_path).find("0" * 12) is None
