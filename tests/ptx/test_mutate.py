"""Mutations of PTX: which there are, and that small launches notice them. `python -m ptx.mutate` tries any number."""

import csv
import random

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda: pip install 'pqkv[cuda]'")

from pqkv.kernels.cuda.device import SIMULATED
from ptx import mutate
from ptx.cases import LAUNCHED
from ptx.mutations import Mutation, mutations
from ptx.syntax import parse

pytestmark = [
    pytest.mark.skipif(SIMULATED, reason="the simulator compiles nothing"),
    pytest.mark.xdist_group("ptx"),  # one process compiles the kernels, not each its own
]


@pytest.fixture
def merge(device):
    return mutate.Target(device, LAUNCHED["merge"])


def statements(ptx):
    (entry,) = parse(ptx).entries.values()
    return [(one.line, one.text) for one in entry.statements]


def test_each_changes_one_instruction_that_is_executed(merge):
    found = mutations(merge.ptx, 20, 3, merge.reached)
    assert len(set(found)) == 20
    assert {one.kind for one in found} == {"swapped", "constant", "inverted", "dropped"}
    before = statements(merge.ptx)
    for one in found:
        after = statements(one.apply(merge.ptx))
        assert one.line in merge.reached
        gone, new = [s for s in before if s not in after], [s for s in after if s not in before]
        assert [line for line, _ in gone] == [one.line]
        assert [line for line, _ in new] == ([] if one.kind == "dropped" else [one.line])


def test_a_seed_says_which(merge):
    first = mutations(merge.ptx, 5, 5, merge.reached)
    random.random()
    assert mutations(merge.ptx, 5, 5, merge.reached) == first
    assert mutations(merge.ptx, 5, 6, merge.reached) != first


def test_most_are_noticed(merge):
    """Some change nothing, such as what a negative index would need: `results/checks/ptx_mutations.csv` has a list."""
    outcomes = [merge.outcome(one) for one in mutations(merge.ptx, 10, 0, merge.reached)]
    assert outcomes.count(mutate.SURVIVED) <= 4, outcomes
    assert "wrong result" in outcomes


def test_a_loop_without_an_end_is_noticed(merge):
    lines = [line.strip() for line in merge.ptx.split("\n")]
    at = max(number for number in merge.reached if lines[number - 1].startswith("bar.sync"))
    again = Mutation("swapped", at, lines[at - 1], "here: bra.uni here;")
    assert merge.outcome(again) == "TooLong"


def test_counts_are_shared_by_size():
    assert mutate.shares(10, {"a": 30, "b": 60, "c": 11}) == {"a": 3, "b": 6, "c": 1}
    assert sum(mutate.shares(200, {"a": 1, "b": 1, "c": 1}).values()) == 200


def test_the_command_keeps_explanations(tmp_path, monkeypatch, capsys):
    file = tmp_path / "mutations.csv"
    asked = ["--count", "2", "--kernel", "merge", "--csv", str(file)]
    monkeypatch.setattr(mutate.Target, "outcome", lambda target, one: mutate.SURVIVED)
    mutate.main(asked)
    assert "0 of 2 killed" in capsys.readouterr().out
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    rows[1]["explanation"] = "as good as before"
    with file.open("w", encoding="utf-8", newline="") as out:
        csv.DictWriter(out, rows[0]).writeheader()
        csv.DictWriter(out, rows[0]).writerows(rows)
    mutate.main(asked)
    assert list(csv.DictReader(file.open(encoding="utf-8"))) == rows
