"""What every experiment says of itself: a question, a command, a finding, and no gap left to fill."""

import re
from pathlib import Path

import pytest

from pqkv.reproduce import EXPERIMENTS
from pqkv.reproduce.run import settings_of

FOLDER = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_states_question_method_command_and_finding(name):
    text = (FOLDER / name / "README.md").read_text()
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert {"Question", "Method", "Command", "Finding", "What contradicts the report"} <= set(heads)
    assert f"pqkv reproduce {name}" in text
    assert not re.findall(r"FIGURE|FINDING|CONTRADICTS|@[A-Z]+@|TODO", text)


@pytest.mark.parametrize("readme", sorted(FOLDER.glob("*/README.md")), ids=lambda path: path.parent.name)
def test_no_gap_is_left_to_fill(readme):
    assert not re.findall(r"@[A-Z0-9]+@|TODO", readme.read_text())


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_settings_of_an_experiment_are_sound(name, quick):
    settings_of(EXPERIMENTS[name], FOLDER, quick=quick)
