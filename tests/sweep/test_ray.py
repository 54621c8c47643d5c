"""The same sweep on a real cluster of Ray on this machine."""

import signal
import time

import psutil
import pytest
from sweep_started import CELL, KILL_AT, LOCKING, RECORD, WRITING, lock_in, start

from pqkv.record import RecordStore
from pqkv.sweep.outcome import Outcomes

pytest.importorskip("ray")
SWEEP = """
command = "eval"
threads = 1
[fixed]
model = "tiny"
metrics = ["perplexity", "kld"]
bits = 0
windows = {windows}
[product]
context = {contexts}
mode = ["chunk"]
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_is_killed_loses_nothing_and_records_are_those_of_one_machine(tmp_path, tiny_folder):
    (tmp_path / "tiny").symlink_to(tiny_folder)
    (tmp_path / "sweep.toml").write_text(SWEEP.format(windows=40, contexts=[48, 52, 56, 60, 64, 68]))
    alone = start("sweep.toml", "-o", "alone", where=tmp_path)
    assert alone.wait(200) == 0, alone.stderr.read()
    child = start("sweep.toml", "-o", "ray", "--ray", "local", where=tmp_path)
    while child.poll() is None and not list(tmp_path.glob("ray/cells/*.cell.json")):
        time.sleep(0.05)
    below = psutil.Process(child.pid).children(recursive=True)
    next(one for one in below if "ray::run_cell" in " ".join(one.cmdline())).kill()
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    assert "6 cells: 6 run now, 0 there before, 0 failed" in out
    first, second = ({r.digest: r for r in RecordStore(tmp_path / name).load_all()} for name in ("alone", "ray"))
    assert first.keys() == second.keys()
    assert all(first[digest].metrics == second[digest].metrics for digest in first)
    assert all(first[digest].samples == second[digest].samples for digest in first)
    assert {outcome.status for outcome in Outcomes(tmp_path / "ray").all()} == {"ok"}


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster that outlives its drivers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        yield made.address
        made.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "step, pattern",
    [
        *((step, pattern) for step in WRITING for pattern in (RECORD, CELL)),
        *((step, lock_in("cells")) for step in LOCKING),
    ],
)
def test_a_driver_that_is_killed_at_any_step_of_a_file_loses_nothing(tmp_path, tiny_folder, cluster, step, pattern):
    """The driver writes all there is, and a second one goes on from it on the same cluster."""
    (tmp_path / "tiny").symlink_to(tiny_folder)
    (tmp_path / "sweep.toml").write_text(SWEEP.format(windows=2, contexts=[48, 52]))
    folder, mark = tmp_path / "ray", tmp_path / "killed"
    words = ["sweep.toml", "-o", "ray", "--ray", cluster]
    killed = start(*words, where=tmp_path, first=[KILL_AT], KILL_AT=f"{step} {pattern} {mark}")
    _, said = killed.communicate(timeout=280)
    assert mark.exists(), said
    assert killed.returncode == -signal.SIGKILL, said
    held = {path: path.read_bytes() for path in folder.glob("*.json")}
    again = start(*words, where=tmp_path)
    assert "2 cells: " in again.communicate(timeout=280)[0]
    assert again.returncode == 0
    found = list(Outcomes(folder).all())
    assert [outcome.status for outcome in found] == ["ok", "ok"]
    assert {digest for outcome in found for digest in outcome.records} == {
        record.digest for record in RecordStore(folder).load_all()
    }
    assert {path: path.read_bytes() for path in held} == held
    assert not list(folder.rglob(".*.lock"))
