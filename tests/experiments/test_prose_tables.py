"""Tables in prose are what their command prints of the records beside them."""

import re
import shlex

import pytest
from prose import ROOT, script, text_of

from pqkv.record import load_records

READMES = [ROOT / "README.md", *sorted((ROOT / "experiments").glob("*/README.md"))]
COMMAND = re.compile(r"^    python (experiments/[\w-]+/tables\.py)(.*)$", re.MULTILINE)
CITED = [
    pytest.param(readme, *found, id=f"{readme.parent.name}: {found[1]}")
    for readme in READMES
    for found in COMMAND.findall(readme.read_text())
]


def test_there_are_such_tables():
    assert CITED


@pytest.mark.parametrize(("readme", "path", "words"), CITED)
def test_a_table_stands_as_its_command_prints_it(readme, path, words):
    words, _, target = words.split("#")[0].partition(">")
    printed = script(path).printed(shlex.split(words))
    assert len(printed.splitlines()) > 2
    assert printed in (ROOT / target.strip() if target else readme).read_text()


def test_a_changed_figure_is_noticed(tmp_path):
    """The ground of the test above: another record, another table."""
    tables = script("experiments/quality/tables.py")
    rows = tables.table("smollm2", "wikitext2-test.txt", (512,))
    assert len(rows.splitlines()) >= 5
    assert tables.table("smollm2", "wikitext2-test.txt", (512,), folder=tmp_path) == tables.HEAD


def test_recall_of_the_real_model_is_what_the_readme_says():
    found = [
        record.metrics
        for record in load_records(ROOT / "results/quality")
        if record.config["model"] == "smollm2" and record.config.get("recipe") == "pqkv" and "recall" in record.metrics
    ]
    assert len(found) == 2  # 4 and 2 bits
    for metrics in found:
        told = [10 * metrics[name].value for name in ("recall_exact", "recall", "recall_control")]
        assert told == pytest.approx([9, 9, 0])
    assert "9 times of 10 on the exact cache, on 4 and on 2 bits, and never when codes are" in text_of("README.md")
