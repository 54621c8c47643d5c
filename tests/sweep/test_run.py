"""Sweeps in real processes: what they keep, what they do again, and what killing them leaves."""

import json
import os
import re
import signal
import time

import pytest
from pqkv_cli.main import main
from sweep_started import CELL, KILL_AT, LOCKING, RECORD, WRITING, lock_in, start

from pqkv.record import RecordStore
from pqkv.sweep.outcome import Outcomes

SWEEP = """
command = "eval"
threads = 1
[fixed]
model = "{model}"
metrics = ["perplexity", "kld"]
bits = 0
windows = {windows}
[product]
context = {contexts}
mode = ["chunk", "token"]
{limits}
"""


@pytest.fixture
def sweep_file(tiny_folder, tmp_path):
    def make(contexts=(48,), windows=2, limits=""):
        file = tmp_path / "sweep.toml"
        file.write_text(SWEEP.format(model=tiny_folder, contexts=list(contexts), windows=windows, limits=limits))
        return file

    return make


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *map(str, words)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def outcomes(folder):
    return {outcome.digest: outcome for outcome in Outcomes(folder).all()}


def test_a_sweep_goes_on_where_it_was_and_tries_again_what_failed_when_told_to(capsys, tmp_path, sweep_file):
    folder, file = tmp_path / "out", sweep_file([48, 4000])  # the tiny model has no 4,000 positions
    code, out, err = run(capsys, file, "-o", folder)
    assert code == 2
    assert "4 cells: 2 run now, 0 there before, 2 failed" in out
    assert "error: 2 of 4 cells failed: context 4000" in err
    first = outcomes(folder)
    assert sorted(one.status for one in first.values()) == ["failed", "failed", "ok", "ok"]
    for one in first.values():
        if one.status == "ok":
            (digest,) = one.records
            record = RecordStore(folder).find(digest)
            assert record.config["context"] == one.context == 48
            assert one.measured
            assert one.peak_rss > 100e6
            assert 0 < one.seconds < 60
    assert sum(one.starting > 0 for one in first.values()) == 1  # one process ran them all

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")}
    code, out, _ = run(capsys, file, "-o", folder)
    assert "4 cells: 0 run now, 2 there before, 2 failed" in out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.json")} == before
    code, out, _ = run(capsys, file, "-o", folder, "--retry-failed", "--shard", "2/2")
    again = outcomes(folder)
    tried = [digest for digest in again if again[digest].attempts == 2]
    assert [again[digest].settings.get("mode") for digest in tried] == [["token"]]
    assert not list(folder.rglob(".*"))

    old, new = folder / ".a.json.1-2.tmp", folder / "cells" / ".b.json.3-4.tmp"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    run(capsys, file, "-o", folder)
    assert not old.exists()  # half a file that a killed process left
    assert new.exists()  # half a file that may yet be written

    code, out, _ = run(capsys, file, "-o", folder, "--plan")
    lines = out.splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["over", "over"]
    assert all("failed before: context 4000" in line for line in lines[3:5])
    assert "4 cells (shard 1 of 1), 2 over, 2 to run, 2 failed before" in out


@pytest.mark.parametrize(
    "limits, cause, said",
    [
        ("memory = '40MB'", "memory", "were resident, and a cell may have 40 MB"),
        ("time = '0.05s'", "time", "it ran longer than the 0.1 s that a cell may take"),
    ],
)
def test_a_cell_beyond_its_limit_is_killed_and_says_so(capsys, tmp_path, sweep_file, limits, cause, said):
    file = sweep_file([256], windows=60, limits=f"[limits]\n{limits}\n[[skip]]\nmode = 'chunk'")
    code, _, err = run(capsys, file, "-o", tmp_path / "out")
    (outcome,) = outcomes(tmp_path / "out").values()
    assert code == 2
    assert (outcome.status, outcome.cause) == ("failed", cause)
    assert said in outcome.reason
    assert outcome.reason in err


def test_a_folder_on_a_network_is_refused(capsys, tmp_path, sweep_file, monkeypatch):
    monkeypatch.setattr("pqkv.lock.filesystem_of", lambda folder: "nfs4")
    code, _, err = run(capsys, sweep_file(), "-o", tmp_path / "out")
    assert code == 2
    assert "lies on nfs4, where two machines may be given one lock: give each machine a folder of its own" in err
    assert not (tmp_path / "out").exists()


def test_a_plan_says_where_nothing_is_known_and_lists_shards(capsys, sweep_file):
    code, out, _ = run(capsys, sweep_file([48, 64]), "--plan", "--shard", "1/2")
    assert code == 0
    assert re.findall(r"context (\d+), mode (\w+) .*no cell like it was measured", out) == [
        ("48", "chunk"), ("64", "chunk"),
    ]  # fmt: skip
    assert "2 cells have no basis for an estimate" in out


def test_a_sweep_without_a_folder_or_a_file_is_one_line(capsys, sweep_file):
    for words in ([], [sweep_file()], [sweep_file(), "-o", "x", "--jobs", "0"], ["--example", "none"]):
        code, _, err = run(capsys, *words)
        assert code == 2
        assert err.startswith("error: ")
        assert err.count("\n") == 1


KILLED_AT = [
    *((step, pattern) for step in WRITING for pattern in (RECORD, CELL)),
    *((step, lock_in(folder)) for step in LOCKING for folder in ("cells", "out")),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("step, pattern", KILLED_AT)
def test_a_kill_at_any_step_of_a_file_loses_nothing(capsys, tmp_path, sweep_file, step, pattern):
    """The driver writes outcomes and locks of cells, its child records and their locks; each is killed in turn."""
    file, folder, mark = sweep_file([48]), tmp_path / "out", tmp_path / "killed"
    killed = start(file, "-o", folder, first=[KILL_AT], KILL_AT=f"{step} {pattern} {mark}")
    _, said = killed.communicate(timeout=280)
    assert mark.exists()
    in_driver = "cell" in pattern
    assert killed.returncode == (-signal.SIGKILL if in_driver else 2), said
    died = [one for one in outcomes(folder).values() if one.status == "failed"]
    assert [one.cause for one in died] == ([] if in_driver else ["died"])
    held = {path: path.read_bytes() for path in folder.glob("*.json")}
    code, _, _ = run(capsys, file, "-o", folder, "--retry-failed")
    assert code == 0
    assert len(outcomes(folder)) == len(list(folder.glob("*.json"))) == 2
    assert {path: path.read_bytes() for path in held} == held  # what was there is as it was
    assert not list(folder.rglob(".*.lock"))


@pytest.mark.slow
@pytest.mark.ci
def test_two_sweeps_share_a_folder_and_one_that_is_killed_is_taken_over(tmp_path, sweep_file):
    file, folder = sweep_file([48, 56, 64, 72], windows=40), tmp_path / "out"
    first, second = start(file, "-o", folder), start(file, "-o", folder)
    while not list(folder.rglob("*.cell.json")):
        time.sleep(0.02)
    first.kill()
    out, err = second.communicate(timeout=200)
    first.communicate()
    assert second.returncode == 0, err
    found = outcomes(folder)
    assert len(found) == 8
    assert len(list(folder.glob("*.json"))) == 8
    assert {one.attempts for one in found.values()} == {1}
    run_now, there = map(int, re.search(r"(\d+) run now, (\d+) there before", out).groups())
    assert run_now + there == 8
    third = start(file, "-o", folder)
    assert "0 run now, 8 there before" in third.communicate(timeout=60)[0]
    assert json.loads(next(iter(folder.glob("*.json"))).read_text())["status"] == "ok"
