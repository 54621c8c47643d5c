"""Which path codes take is decided by the processor's features, before anything is compiled."""

import os
import subprocess
import sys

import pytest

from pqkv.cpu_path import NEEDS, PATHS, choose_path
from pqkv.errors import KernelError

ZEN4 = dict.fromkeys([*NEEDS["avx512"][0], "avx2"], True)
ALDER_LAKE = dict.fromkeys(["avx2", "fma", "avxvnni"], True)


def without(*names):
    return {**ZEN4, **dict.fromkeys(names, False)}


@pytest.mark.parametrize(
    ("features", "name", "reason"),
    [
        (ZEN4, "avx512", "VBMI and VNNI"),
        (without("avx512vbmi"), "vnni", "VNNI and no avx512vbmi"),
        (ALDER_LAKE, "vnni", "VNNI and no avx512f"),
        (without("avx512vnni"), "avx2", "no avx512vnni"),
        (without("avx512vbmi", "avx512vl"), "avx2", "no avx512vl"),
        ({**ALDER_LAKE, "fma": False}, "float", "no fma"),
        (without(*NEEDS["avx512"][0][:-1]), "avx2", "no avx512f"),
        (without("avx2", "avx512f"), "float", "no avx2"),
        ({}, "float", "no avx2, fma"),
    ],
)
def test_the_best_path_a_processor_has(features, name, reason):
    found = choose_path(None, features)
    assert found.name == name
    assert reason in found.reason


def test_which_widths_a_path_serves():
    assert [nbits for nbits in range(1, 13) if choose_path(None, ZEN4).serves(nbits)] == [4, 6, 8]
    for name in ("avx2", "vnni"):
        assert [nbits for nbits in range(1, 13) if choose_path(name, ZEN4).serves(nbits)] == [4, 6]
    assert not any(choose_path("float", ZEN4).serves(nbits) for nbits in range(1, 13))


@pytest.mark.parametrize("name", PATHS)
def test_a_path_may_be_forced(name):
    assert choose_path(name, ZEN4).name == name


def test_a_path_the_processor_lacks_is_refused_by_what_is_missing():
    with pytest.raises(KernelError, match="no avx512vbmi; it has float, portable, avx2, vnni"):
        choose_path("avx512", without("avx512vbmi"))


def test_what_is_missing_is_told_of_every_form():
    with pytest.raises(KernelError, match="vnni cannot run: this processor has no avxvnni, nor avx512vl; it has"):
        choose_path("vnni", without("avx512vl"))
    with pytest.raises(KernelError, match=r"no avx2, avxvnni, nor avx2, avx512vnni, avx512vl; it has .*; unset"):
        choose_path("vnni", {"fma": True})


def test_an_unknown_path_is_refused_with_the_known_ones():
    with pytest.raises(KernelError, match="known: float, portable, avx2, vnni, avx512"):
        choose_path("sse2", ZEN4)


@pytest.mark.parametrize(("path", "said"), [("sse2", "names no path"), ("portable", "PQKV_CPU_PATH is set")])
def test_the_command_line_says_which_path_it_takes(path, said):
    code = "from pqkv_cli.main import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", code, "env"], env={**os.environ, "PQKV_CPU_PATH": path}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert run.returncode == (2 if path == "sse2" else 0)
    assert said in " ".join((run.stdout + run.stderr).split())
    assert "Traceback" not in run.stderr
