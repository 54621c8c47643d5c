"""`make gpu` cannot run here; what it would run can be looked at."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pqkv_cli.main import app
from typer.testing import CliRunner

FILE = Path(__file__).parent.parent / "experiments" / "gpu" / "run.py"


@pytest.fixture(scope="module")
def steps():
    spec = importlib.util.spec_from_file_location("gpu_run", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_run"] = module
    spec.loader.exec_module(module)
    return list(module.steps())


def test_every_flag_of_every_step_exists(steps):
    for step in steps:
        if "bench" not in step.command:
            continue
        command = list(step.command[step.command.index("bench") :])
        flags = {word for word in command if word.startswith("--")}
        told = CliRunner().invoke(app, ["bench", "--help"], env={"COLUMNS": "300"}).output
        assert {flag for flag in flags if flag not in told} <= {"--no-fallback"}  # its line names both forms


def test_names_are_unique_and_minutes_few(steps):
    assert len({step.name for step in steps}) == len(steps)
    assert all(step.minutes <= 10 for step in steps)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line_and_exits_with_2(tmp_path):
    run = subprocess.run([sys.executable, str(FILE)], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("error: torch finds no NVIDIA GPU here")
    assert run.stderr.count("\n") == 1
