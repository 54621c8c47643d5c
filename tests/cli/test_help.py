"""Help and completion: an example for each command that would be taken, 80 columns, no colour where none is wanted."""

import os
import shlex
import subprocess
import sys

import pytest
import typer
from pqkv_cli.examples import EXAMPLES
from pqkv_cli.main import app, main

COMMANDS = typer.main.get_command(app).commands
START = "from pqkv_cli.main import main; main()"


def call(*words, **env):
    own = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "FORCE_COLOR")} | env
    return subprocess.run([sys.executable, "-c", START, *words], capture_output=True, text=True, check=False, env=own)


def test_every_command_has_an_example():
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_taken_as_it_stands_and_shown_in_80_columns(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")  # which typer's help goes by, read when it was imported
    program, command, *words = shlex.split(EXAMPLES[name])
    assert (program, command) == ("pqkv", name)
    COMMANDS[name].make_context(name, words)  # refuses what the command does not take
    with pytest.raises(SystemExit):
        main([name, "--help"])
    shown = capsys.readouterr().out
    assert " ".join(EXAMPLES[name].split()) in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_no_colour_where_none_is_wanted():
    coloured = call("--help", FORCE_COLOR="1")
    assert "\x1b[" in coloured.stdout, "or what follows shows nothing"
    for words in (["--help"], ["codecs"], ["env"]):
        plain = call(*words, FORCE_COLOR="1", NO_COLOR="1")
        assert plain.returncode == 0
        assert not [code for code in plain.stdout.split("\x1b[")[1:] if code[0] in "349" and code[1:2].isdigit()]


@pytest.mark.parametrize(
    ("shell", "env"),
    [
        ("bash", {"COMP_WORDS": "pqkv gen", "COMP_CWORD": "1"}),
        ("zsh", {"_TYPER_COMPLETE_ARGS": "pqkv gen"}),
    ],
)
def test_a_shell_completes_commands(shell, env, tmp_path):
    script = tmp_path / "pqkv"
    script.write_text(START)
    own = {**os.environ, "_PQKV_COMPLETE": f"complete_{shell}", **env}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, env=own)
    assert "generate" in done.stdout
    assert "bench" not in done.stdout
