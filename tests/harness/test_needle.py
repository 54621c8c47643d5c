"""`pqkv_needle`: a fact by depth, found on codes and lost on codes that were dealt to the wrong tokens."""

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'pqkv[lm-eval]'")

from lm_eval.tasks import TaskManager
from runs import metric, run

from pqkv.errors import ConfigError
from pqkv.harness.model import PQKVLM
from pqkv.harness.needle import documents
from pqkv.harness.run import TASKS

SIZE = {"characters": 900, "needles": 2, "fact": "number"}


@pytest.fixture(scope="module")
def by_depth(four):
    """(codes, control) -> accuracy at depths 10 and 90."""
    names = ["pqkv_needle_10", "pqkv_needle_90"]
    found = {}
    for control in (False, True):
        lm = PQKVLM(codebooks=str(four), batch_size=4, control=control)
        results = run(lm, TASKS, names, metadata=SIZE)
        found[control] = [metric(results, name, "acc") for name in names]
    return found


def test_codes_find_the_needle(by_depth):
    assert by_depth[False] == [1, 1]


def test_the_control_finds_it_only_among_the_newest_tokens_which_are_exact(by_depth):
    assert by_depth[True] == [0, 1]


def test_the_group_has_a_task_for_every_depth():
    group = TaskManager(include_path=str(TASKS), include_defaults=False).match_tasks(["pqkv_needle*"])
    assert group == ["pqkv_needle", *(f"pqkv_needle_{depth}" for depth in (10, 30, 50, 70, 90))]


def test_depths_differ_in_where_the_fact_stands_and_in_nothing_else():
    shallow, deep = (documents(depth, **SIZE)["test"] for depth in (0.1, 0.9))
    for a, b in zip(shallow, deep, strict=True):
        fact = next(line for line in a["prompt"].splitlines() if line.startswith("Remember: "))
        assert fact.endswith(f"is{a['answer']}.")
        planted = f"\n{fact}\n"
        assert a["answer"] == b["answer"]
        assert a["prompt"].replace(planted, "", 1) == b["prompt"].replace(planted, "", 1)
        assert a["prompt"].index(planted) < 0.15 * 900
        assert b["prompt"].index(planted) > 0.75 * 900
    assert len({row["answer"] for row in shallow}) == 2


def test_a_word_is_planted_where_nothing_else_is_asked_for():
    """And asked for in the words of the fact, which models that know no numbers by heart can go on with."""
    for row in documents(0.5, characters=900, needles=3)["test"]:
        *_, asked = row["prompt"].splitlines()
        assert asked.startswith("The secret word of the ")
        assert row["prompt"].count(f"\n{asked}{row['answer']}.\n") == 1


def test_another_fact_is_refused():
    with pytest.raises(ConfigError, match="a word or a number, not poem"):
        documents(0.5, fact="poem")


def test_a_text_that_is_too_short_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("a few words\n")
    with pytest.raises(ConfigError, match="lower characters"):
        documents(0.5, data=str(tmp_path / "short.txt"))
