"""Folders joined: nothing lost, nothing chosen silently."""

import pytest
from pqkv_cli.main import main
from sweep_made import eval_record, failure, folder_of

from pqkv.errors import ConfigError, RecordError
from pqkv.record import RecordStore
from pqkv.sweep.merge import merge
from pqkv.sweep.outcome import Outcome, Outcomes

LATER = "2026-01-02T00:00:00+00:00"


def outcome(digest, records, status="ok", attempts=1):
    return Outcome(
        digest=digest, command="eval", settings={}, run=1, context=512, tokens=512, alike=("a", "b", "c"),
        status=status, cause=None, reason=None, seconds=1.0, starting=0.0, peak_rss=None, measured=True,
        records=tuple(records), machine="m", threads=1, attempts=attempts, finished_at=LATER,
    )  # fmt: skip


def test_what_one_folder_has_is_taken_as_it_is(tmp_path):
    short, long = eval_record([0.1, 0.2]), eval_record([0.1, 0.3], context=1024)
    a, b, run = folder_of(tmp_path / "a", short), folder_of(tmp_path / "b"), folder_of(tmp_path / "b" / "run-2", long)
    done = merge([a, b], tmp_path / "c")
    assert (done.written, done.twice, done.conflicts) == (2, 0, [])
    assert RecordStore(tmp_path / "c").find(short.digest) == short
    assert RecordStore(tmp_path / "c" / "run-2").find(long.digest) == long
    for source, record in ((a, short), (run, long)):
        name = f"{record.digest}.json"
        kept = tmp_path / "c" / ("run-2" if source == run else "") / name
        assert kept.read_bytes() == (source / name).read_bytes()
    again = merge([a, b], tmp_path / "c")
    assert (again.written, again.there) == (0, 2)


def test_equal_figures_are_one_record_the_first_measured(tmp_path):
    early, late = eval_record([0.1, 0.2]), eval_record([0.1, 0.2], at=LATER)
    done = merge([folder_of(tmp_path / "a", late), folder_of(tmp_path / "b", early)], tmp_path / "c")
    assert (done.written, done.twice, done.conflicts) == (1, 1, [])
    assert RecordStore(tmp_path / "c").load_all() == [early]


def test_other_figures_are_a_conflict_that_is_left_out_with_its_outcome(tmp_path):
    one, other, fine = eval_record([0.1, 0.2]), eval_record([0.1, 0.21]), eval_record([0.5, 0.6], context=64)
    a, b = folder_of(tmp_path / "a", one, fine), folder_of(tmp_path / "b", other)
    Outcomes(a).write(outcome("0" * 12, [one.digest]))
    Outcomes(a).write(outcome("1" * 12, [fine.digest]))
    done = merge([a, b], tmp_path / "c")
    (conflict,) = done.conflicts
    assert conflict.records == {a: one, b: other}
    assert conflict.different() == ["kld_mean"]
    assert RecordStore(tmp_path / "c").load_all() == [fine]
    assert [found.digest for found in Outcomes(tmp_path / "c").all()] == ["1" * 12]


def test_windows_that_differ_below_equal_means_are_a_conflict(tmp_path):
    one, other = eval_record([0.25, 0.5]), eval_record([0.5, 0.25])
    done = merge([folder_of(tmp_path / "a", one), folder_of(tmp_path / "b", other)], tmp_path / "c")
    assert len(done.conflicts) == 1


def test_what_the_goal_holds_stays(tmp_path):
    one, other = eval_record([0.1, 0.2]), eval_record([0.1, 0.3])
    c = folder_of(tmp_path / "c", one)
    done = merge([folder_of(tmp_path / "a", other)], c)
    assert len(done.conflicts) == 1
    assert RecordStore(c).load_all() == [one]


def test_a_success_outdoes_a_failure_and_of_two_failures_the_later_stays(tmp_path):
    a = folder_of(tmp_path / "a", failure(), failure(context=64, error="early"))
    b = folder_of(tmp_path / "b", eval_record([0.1, 0.2]), failure(context=64, error="late", at=LATER))
    Outcomes(a).write(outcome("0" * 12, [], "failed", attempts=3))
    Outcomes(b).write(outcome("0" * 12, [eval_record([0.1, 0.2]).digest]))
    Outcomes(a).log("0" * 12).write_text("what went wrong")
    done = merge([a, b], tmp_path / "c")
    assert (done.written, done.outdone) == (2, 2)
    found = {record.config["context"]: record for record in RecordStore(tmp_path / "c").load_all()}
    assert found[512].status == "ok"
    assert found[64].error == "late"
    (kept,) = Outcomes(tmp_path / "c").all()
    assert kept.status == "ok"
    onto = folder_of(tmp_path / "d", failure())
    merge([b], onto)
    found = {record.config["context"]: record.status for record in RecordStore(onto).load_all()}
    assert found == {64: "failed", 512: "ok"}


def test_a_damaged_record_stops_a_merge_before_it_writes(tmp_path):
    a, b = (
        folder_of(tmp_path / "a", eval_record([0.1, 0.2])),
        folder_of(tmp_path / "b", eval_record([0.3, 0.2], bits=2)),
    )
    path = next(b.glob("*.json"))
    path.write_text(path.read_text().replace("0.3", "0.4"))
    with pytest.raises(RecordError, match="does not match its checksum"):
        merge([a, b], tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_folder_that_brings_nothing_is_refused(tmp_path):
    a = folder_of(tmp_path / "a", eval_record([0.1, 0.2]))
    (tmp_path / "empty").mkdir()
    for folders, said in (
        ([a, tmp_path / "none"], "no folder of records"), ([tmp_path / "empty"], "no records in .*empty"),
        ([a, tmp_path / "b" / ".." / "a"], "are one folder"),
    ):  # fmt: skip
        (tmp_path / "b").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=said):
            merge(folders, tmp_path / "c")
        assert not (tmp_path / "c").exists()


def test_a_shard_without_cells_is_told_and_stops_nothing(tmp_path, capsys):
    a = folder_of(tmp_path / "a", eval_record([0.1, 0.2]))
    (tmp_path / "b").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["merge", str(a), str(tmp_path / "b"), "-o", str(tmp_path / "c")])
    out, err = capsys.readouterr()
    assert stop.value.code == 0
    assert "1 records written" in out
    assert err.splitlines() == [f"no records in {tmp_path / 'b'}: a shard without cells, or another folder was meant"]


def test_the_command_shows_conflicts_and_ends_with_2(tmp_path, capsys):
    a, b = folder_of(tmp_path / "a", eval_record([0.1, 0.2])), folder_of(tmp_path / "b", eval_record([0.1, 0.21]))
    with pytest.raises(SystemExit) as stop:
        main(["merge", str(a), str(b), "-o", str(tmp_path / "c")])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert "kld_mean 0.15" in out
    assert "kld_mean 0.155" in out
    assert err == (
        "error: 1 configuration with other figures in other folders left out; delete the records that are wrong, or "
        "measure both as runs (--runs) of one sweep\n"
    )
