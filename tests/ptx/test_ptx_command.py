"""`python -m ptx` on a file, as its help says."""

import os
import subprocess
import sys
from pathlib import Path

from ptx.written import kernel

TESTS = Path(__file__).parents[1]
DOUBLED = (
    "mul.wide.u32 %rd0, %r20, 4; add.s64 %rd1, %rd0, %rd20; ld.global.f32 %f0, [%rd1]; add.f32 %f0, %f0, %f0;"
    "add.s64 %rd1, %rd0, %rd21; st.global.f32 [%rd1], %f0;"
)


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "ptx", *map(str, arguments)], cwd=TESTS, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip


def test_a_kernel_is_loaded_and_launched(tmp_path):
    file = tmp_path / "kernel.ptx"
    file.write_text(kernel(DOUBLED))
    ran = command(file, "--forms", "--run", 1, 64, "64:float32", "64:float32")
    assert ran.returncode == 0, ran.stderr
    assert "written: 10 statements, 2 parameters" in ran.stdout
    assert "2 ld.param.u64" in ran.stdout
    assert "20 statements ran" in ran.stdout  # by two warps
    assert "argument 1: [" in ran.stdout
    assert "argument 0" not in ran.stdout


def test_what_goes_wrong_is_said_in_a_line(tmp_path):
    file = tmp_path / "kernel.ptx"
    file.write_text(kernel(DOUBLED))
    ran = command(file, "--run", 1, 65, "64:float32", "64:float32")
    assert ran.returncode == 1
    assert "OutOfBounds" in ran.stderr
    assert "ld.global.f32 %f0, [%rd1]" in ran.stderr
    file.write_text(kernel("tanh.approx.f32 %f0, %f0;"))
    ran = command(file)
    assert ran.returncode == 1
    assert "tanh.approx.f32 %f0, %f0" in ran.stderr
