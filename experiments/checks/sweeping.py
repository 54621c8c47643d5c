"""What the checks of sweeps share: small cells of the bundled model, sweeps as commands in processes of their own."""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recording import keep

SMALL = """
command = "eval"
threads = 1
[fixed]
model = "reference"
metrics = ["perplexity", "kld"]
windows = {windows}
[product]
context = {contexts}
bits = [4, 3, 2]
mode = ["exact-schedule", "all-coded"]
"""
Rows = list[dict[str, Any]]
PQKV = [sys.executable, "-c", "from pqkv_cli.main import main; main()"]
_TIMED = ("started_at", "seconds", "env", "git", "checksum")


def small(contexts: list[int], windows: int = 2) -> str:
    """The file of a sweep of six cells a context."""
    return SMALL.format(contexts=contexts, windows=windows)


def start(file: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PQKV, "sweep", str(file), "-o", str(folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str]) -> list[int]:
    """Cells, those run now, those there before."""
    out, err = child.communicate()
    if child.returncode:
        raise SystemExit(f"a sweep ended with {child.returncode}: {err}")
    return [int(count) for count in re.search(r"(\d+) cells: (\d+) run now, (\d+) there before", out).groups()]


def over(folder: Path) -> int:
    """Cells that are over."""
    return len(list((folder / "cells").glob("*.cell.json")))


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by digest, without what a clock or the machine's state says."""
    found = {}
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        for key in _TIMED:
            del record[key]
        record["tables"].pop("memory_plan", None)
        found[record["digest"]] = record
    return found


def written(folder: Path) -> dict[str, int]:
    """When each record was put where it is."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


def run_part(doc: str, parts: dict[str, Callable[[Path], Rows]]) -> None:
    """The part that the command line names, in a folder of its own or in that of --work, where what was measured before
    is found; kept where it says -o.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("part", choices=parts)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--work", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pqkv-sweep-") as where:
        work = asked.work or Path(where)
        keep(f"sweep_{asked.part}", {"part": asked.part}, asked.output, lambda: parts[asked.part](work))
