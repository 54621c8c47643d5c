"""`pqkv reproduce`: what it lists, refuses, runs and leaves."""

import pytest
from models import write_corpus
from pqkv_cli.main import main

NAME = "quality-degradation"


def run(capsys, *words):
    """Exit code, stdout and the last line of stderr."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return stop.value.code, out, (err.strip().splitlines() or [""])[-1]


def test_the_list_names_every_experiment(capsys):
    code, out, _ = run(capsys, "reproduce", "--list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [
        "quality-degradation",
        "million",
        "incremental-decode",
        "paged-kernel",
        "attention-variants",
    ]


@pytest.mark.parametrize(("words", "cause"), [
    (["reproduce"], "name one experiment, or give --all or --list"),
    (["reproduce", "million", "--all"], "name one experiment, or give --all or --list"),
    (["reproduce", "milion"], "unknown experiment 'milion'; known: quality-degradation, million, incr"),
    (["reproduce", NAME, "--experiments", "nowhere"], "run in a checkout of pqkv, or name its folder of experiments"),
    (["reproduce", NAME, "--quik"], "--quik"),
    (["reproduce", "million", "--parts", "a,x"], "million has no part 'x'; known: a, b, c, d, e, f, g, h, i, j"),
    (["reproduce", NAME, "--parts", "e"], f"{NAME} has no part 'e'; known: a, b, c, d"),
    (["reproduce", NAME, "--model", "reference", "--parts", "b"],
     f"part b of {NAME} takes no --model; with one, name parts of a, c, d, or none"),
    (["reproduce", "million", "--model", "reference", "--parts", "a,c"],
     "part c of million takes no --model; with one, name parts of a, h, or none"),
    (["reproduce", "incremental-decode", "--model", "reference"], "incremental-decode asks no model: leave --model"),
    (["reproduce", "million", "--model", "./nowhere"], "there is no model folder ./nowhere"),
    (["reproduce", NAME, "--model", "nowhere.gguf"], "there is no model file nowhere.gguf"),
])  # fmt: skip
def test_a_wrong_word_is_one_line(capsys, words, cause):
    code, out, line = run(capsys, *words)
    assert code == 2
    assert out == ""
    assert line.startswith("error: ")
    assert cause in line


def test_it_runs_and_names_what_it_wrote(capsys, tmp_path, tiny_folder):
    text = write_corpus(tmp_path / "text", ["a.txt", "b.txt"])
    settings = tmp_path / "experiments" / NAME / "experiment.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        f'model = "{tiny_folder}"\ndata = "{text}"\ncontexts = [100]\nwindows = 1\ndecode_tokens = 10\npage_size = 16\n'
        'faults = ["fault:none/32", "fault:warp-max/128"]\n'
    )
    words = ["reproduce", NAME, "--experiments", tmp_path / "experiments", "-o", tmp_path / "out"]
    code, out, _ = run(capsys, *words)
    assert code == 0
    names = [line.rsplit("/", 1)[-1] for line in out.splitlines()]
    assert names == [
        "fingerprint.csv", "fingerprint.md", "fingerprint.png", "claims.csv", "claims.md", "b_blocks.csv",
        "b_reduction.csv", "c_positions.csv", "d_float64.csv",
    ]  # fmt: skip
    assert len(list((tmp_path / "out" / NAME).glob("*.json"))) == 2 + 2 + 1 + 1
