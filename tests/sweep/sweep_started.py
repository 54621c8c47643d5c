"""Sweeps as processes of their own, and the steps of writing a file at which one may be killed."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
KILL_AT = str(ROOT / "tests/sweep/kill_at")
RECORD, CELL = r"/\.?[0-9a-f]{12}\.json", r"\.cell\.json"
WRITING = ("opened", "written", "synced", "renamed")
LOCKING = ("locked", "written", "synced", "unlinking")


def lock_in(folder):
    """Where the locks of `folder` lie, as a pattern."""
    return rf"{folder}/\.[0-9a-f]+\.lock$"


def start(*words, where=None, first=(), **environment):
    """A sweep in a process of its own; `first` comes first on its path."""
    code = "from pqkv_cli.main import main; main()"
    paths = os.pathsep.join([*first, str(ROOT), str(ROOT / "cli")])
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, "sweep", *map(str, words)], cwd=where, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths, **environment},
    )  # fmt: skip
