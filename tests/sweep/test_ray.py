"""The same sweep on a real cluster of Ray on this machine."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pqkv.record import RecordStore
from pqkv.sweep.outcome import Outcomes

pytest.importorskip("ray")
ROOT = Path(__file__).parents[2]
SWEEP = """
command = "eval"
threads = 1
[fixed]
model = "tiny"
metrics = ["perplexity", "kld"]
bits = 0
windows = 40
[product]
context = [48, 52, 56, 60, 64, 68]
mode = ["chunk"]
"""


def start(where, *words):
    code = "from pqkv_cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, "sweep", "sweep.toml", *words], cwd=where, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")])},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_worker_that_is_killed_loses_nothing_and_records_are_those_of_one_machine(tmp_path, tiny_folder):
    (tmp_path / "tiny").symlink_to(tiny_folder)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    alone = start(tmp_path, "-o", "alone")
    assert alone.wait(200) == 0, alone.stderr.read()
    child = start(tmp_path, "-o", "ray", "--ray", "local")
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
