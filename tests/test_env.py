"""The environment says what the figures were taken on, and nothing about who took them."""

import getpass
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pqkv
from pqkv.env import PACKAGES, environment, git_state, machine_name


def test_environment_is_json_and_complete():
    env = environment()
    assert json.loads(json.dumps(env, allow_nan=False)) == env
    assert env["python"] == platform.python_version()
    assert 1 <= env["cores"] <= os.cpu_count()
    assert env["memory_bytes"] > 2**20
    assert env["simd"] in ("avx512f", "avx2", "none")
    assert env["torch_threads"] >= 1
    assert set(env["versions"]) <= set(PACKAGES)
    assert env["versions"]["pqkv"] == pqkv.__version__


def test_environment_holds_no_paths_and_no_names():
    text = json.dumps([environment(), git_state()])
    secrets = {platform.node(), getpass.getuser(), str(Path.home()), sys.prefix, str(Path(pqkv.__file__).parent)}
    for secret in secrets:
        assert len(secret) <= 4 or secret not in text  # shorter ones occur inside words
    assert "/" not in text.replace("w/", "")  # "AMD Ryzen w/ Radeon Graphics"


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"cpu": "AMD EPYC", "cores": 2, "memory_bytes": 25276510208, "gpus": []}, "2 x AMD EPYC, 24 GiB"),
        ({"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cores": 8, "memory_bytes": 2**36}, "8 x Intel Xeon, 64 GiB"),
        ({"cpu": "AMD EPYC 7B13 64-Core Processor", "cores": 4}, "4 x AMD EPYC 7B13"),
        ({"cpu": "AMD EPYC", "cores": 2, "gpus": [{"name": "NVIDIA H200"}]}, "NVIDIA H200"),
        ({"gpus": [{"name": "NVIDIA H100"}, {"name": "NVIDIA H100"}]}, "2 x NVIDIA H100"),
        ({"gpus": [{"name": "B"}, {"name": "A"}, {"name": "B"}]}, "A + 2 x B"),
        ({}, "unknown CPU"),
    ],
)
def test_machine_name_is_short(env, name):
    assert machine_name(env) == name


def git(folder, *arguments):
    subprocess.run(
        ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", *arguments],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip


def state_of(root, **variables):
    """`git_state()` of the copy of pqkv that lies in `root`."""
    code = "import json, pqkv.env; print(json.dumps(pqkv.env.git_state()))"
    env = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    done = subprocess.run([sys.executable, "-c", code], cwd="/", env=env, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    copy_package(root)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    return root


def copy_package(root):
    source = Path(pqkv.__file__).parent
    (root / "pqkv").mkdir(parents=True)
    for name in ("__init__.py", "env.py"):
        shutil.copy(source / name, root / "pqkv" / name)


def test_git_state_names_the_commit_and_changes_of_the_code_only(checkout):
    clean = state_of(checkout)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (checkout / "results").mkdir()
    (checkout / "results" / "a.json").write_text("{}")
    assert state_of(checkout) == clean
    (checkout / "pqkv" / "new.py").write_text("")
    assert state_of(checkout) == {**clean, "dirty": True}


def test_git_state_is_not_led_astray_by_a_hook_of_another_repository(checkout, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    assert state_of(checkout, GIT_DIR=str(other / ".git"), GIT_WORK_TREE=str(other)) == state_of(checkout)


def test_git_state_is_empty_when_pqkv_is_installed_inside_a_foreign_checkout(checkout):
    installed = checkout / ".venv" / "site-packages"
    copy_package(installed)
    assert state_of(installed) == {}


def test_git_state_is_empty_without_commits_without_a_repository_and_without_git(tmp_path):
    root = tmp_path / "bare"
    copy_package(root)
    assert state_of(root, GIT_CEILING_DIRECTORIES=str(tmp_path)) == {}
    git(root, "init", "-q")
    assert state_of(root) == {}
    assert state_of(root, PATH=str(tmp_path)) == {}
