"""`make gpu` cannot run here; what it would run can be looked at."""

import importlib.util
import subprocess
import sys
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pqkv_cli.main import app
from typer.testing import CliRunner

from pqkv.codec import code_geometry
from pqkv.config import CodeShape
from pqkv.errors import KernelError
from pqkv.kernels.cuda import backend
from pqkv.speed.synthetic import decode_inputs

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


@pytest.fixture(scope="module")
def dry(steps):
    spec = importlib.util.spec_from_file_location("gpu_dry", FILE.with_name("dry.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_dry"] = module
    spec.loader.exec_module(module)
    return module


def test_a_dry_run_knows_what_every_timed_step_asks_for(steps, dry):
    timed = [s for s in steps if "bench" in s.command or any(word.endswith("parts.py") for word in s.command)]
    asked = {step.name: dry.configs(step.command) for step in timed if "--end-to-end" not in step.command}
    assert len(asked) == 17
    assert all(asked.values())
    (grid,) = asked["grid-group8-batch32"]
    assert (grid.heads, grid.kv_heads, grid.batch, grid.bits) == (64, 8, (32,), (0, 4, 3, 2))
    assert (grid.served, asked["recipe-group4"][0].served) == ((), dry.SERVED_PARTS["all"])
    assert (grid.dtype, grid.fallback, grid.lengths[-1]) == ("float16", False, 32768)
    assert asked["breakdown-group1"][0].breakdown
    assert [config.served for config in asked["parts-batch1"]] == [(), dry.SERVED_PARTS["all"]]
    assert len(asked["parts-batch8"]) == len(dry.SERVED_PARTS)
    assert not dry.configs(next(s for s in steps if s.name == "environment").command)


def test_its_kernels_are_those_that_a_step_launches(dry, monkeypatch):
    """The backend's own host code says which, with nothing launched."""
    config = dry.BenchConfig(heads=8, kv_heads=2, bits=(4,), lengths=(128,), dtype="float16")
    case = decode_inputs(config, 128, 1, code_geometry(CodeShape(bits=4), 128), 0, torch.device("cpu"))
    launched = []
    monkeypatch.setattr(backend, "compiled", lambda factory, variant: launched.append(variant))
    monkeypatch.setattr(backend, "launch", lambda *given: None)
    monkeypatch.setattr(backend, "multiprocessors", lambda device: 4)
    case.step(backend.attention, 1.0, None)
    assert set(launched) == set(dry.kernels(config))


def test_a_dry_run_fails_with_what_cannot_be_compiled_or_collected(dry, capsys):
    def refuse(kernels):
        made = {kernel: Future() for kernel in kernels}
        for future in made.values():
            future.set_exception(KernelError("ptxas is ill"))
        return nullcontext(made)

    step = SimpleNamespace(name="a", command=(sys.executable, "-m", "pqkv_cli", "bench", "--bits", "4"), minutes=1)
    tests = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/no_such_file.py")
    none = SimpleNamespace(name="b", command=tests, minutes=1)
    assert dry.dry_run([step, none], FILE.parents[2], refuse) == 1
    printed = capsys.readouterr()
    assert "a: FAILED: ptxas is ill" in printed.out
    assert "b: FAILED" in printed.out
    assert printed.err.strip() == "failed: a, b"


def test_seconds_are_those_of_cells_that_were_as_large(dry):
    known = dry.Seconds(FILE.parents[2] / "results" / "gpu" / "bench")
    assert known.of(1e6) < known.of(4e9) < 60
    assert dry.Seconds(FILE.parent).of(1e9) is None
