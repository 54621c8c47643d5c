"""What a newcomer gets: sdist and wheel are built, installed into empty environments, with the newest and with the
lowest versions that are allowed, and used from elsewhere.
"""

import email
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.xdist_group("wheel")]


def call(*words, **more):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What git tracks, as a checkout has it: nothing built here helps."""
    folder = tmp_path_factory.mktemp("source")
    for name in call("git", "ls-files", cwd=ROOT).splitlines():
        if name.startswith(("pqkv/", "cli/")) or "/" not in name:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def built(source, tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "build", "--outdir", folder, source)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def lowest(wheel):
    """Every direct requirement of a wheel at the lowest version that it allows."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        told = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist")
    asked = [requirement for requirement in map(Requirement, told) if requirement.marker is None]
    bounds = {r.name: spec.version for r in asked for spec in r.specifier if spec.operator == ">="}
    assert len(bounds) == len(asked) > 10
    return [f"{name}=={version}" for name, version in bounds.items()]


@pytest.fixture(scope="module", params=["newest", "lowest"])
def installed(request, built, tmp_path_factory):
    """The commands of an environment that has the wheel and what it asks for, and nothing else; and its versions."""
    folder = tmp_path_factory.mktemp("empty") / "venv"
    call(sys.executable, "-m", "venv", folder)
    # the torch of this run: the plain name may bring gigabytes of CUDA, as the lowest one does
    torch = os.environ.get("TORCH", f"torch=={version('torch').partition('+')[0]}")
    wanted = [torch] if request.param == "newest" else lowest(built[1])
    call(folder / "bin/pip", "install", "--quiet", built[1], *wanted)
    return folder / "bin", wanted


def test_both_hold_every_file_that_is_loaded_at_run_time(source, built):
    tracked = {str(path.relative_to(source)) for path in (source / "pqkv").rglob("*") if path.is_file()}
    tracked |= {str(path.relative_to(source)) for path in (source / "cli").rglob("*") if path.is_file()}
    with tarfile.open(built[0]) as archive:
        assert tracked <= {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    with zipfile.ZipFile(built[1]) as archive:
        assert {name.removeprefix("cli/") for name in tracked} <= set(archive.namelist())


def test_it_runs_in_an_empty_environment(installed, tmp_path):
    commands, wanted = installed
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    there = {"cwd": tmp_path, "env": {**own, "PQKV_CACHE": str(tmp_path / "kept")}}
    versions = json.loads(call(commands / "pqkv", "env", "--format", "json", **there))["versions"]
    for requirement in map(Requirement, wanted):
        if requirement.name in versions and requirement.specifier:
            assert requirement.specifier.contains(versions[requirement.name].partition("+")[0])
    windows = ("--context", "320", "--windows", "2", "--metrics", "perplexity,agreement")
    (record,) = json.loads(call(commands / "pqkv", "eval", *windows, "--format", "json", "-o", "records", **there))
    assert record["status"] == "ok"
    assert 0.9 < record["metrics"]["perplexity_ratio"]["value"] < 1.1
    assert record["metrics"]["coded_share"]["value"] > 0.2
    call(commands / "pqkv", "report", "records", "-o", "page", **there)
    assert "<html" in (tmp_path / "page/report.html").read_text()
    written = call(commands / "pqkv", "generate", "-p", "def wrap(text):", "--tokens", "160", **there)
    assert "== 4 bits" in written
