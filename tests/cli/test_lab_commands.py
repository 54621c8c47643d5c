"""`pqkv codecs`, `pqkv lab`, `pqkv recommend`: what they print, keep and refuse."""

import json

import pytest
from pqkv_cli.main import main

LAB = """
model = "{model}"
texts = ["stdlib"]
context = [64]
windows = [3]
against = "four"
[calibration]
calibration_tokens = 256
context = 64
positions = 256
[methods]
four = "int:bits=4,group=8"
two = "int:bits=2,group=8"
ours = "composed:num_subspaces=8,nbits=4,iterations=2,mean=turning"
"""


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PQKV_CACHE", str(tmp_path_factory.mktemp("kept")))
        yield


@pytest.fixture(scope="module")
def lab_file(tiny_folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("lab") / "lab.toml"
    file.write_text(LAB.format(model=tiny_folder))
    return file


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, words)))
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_codecs_lists_every_codec_with_its_bits(capsys, monkeypatch):
    from pqkv.codec.catalog import CODECS

    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run(capsys, "codecs", "--format", "json")
    rows = {row["codec"]: row for row in json.loads(out)}
    assert code == 0
    assert list(rows) == list(CODECS)
    assert rows["q8_0"]["bits"] == "8.5"
    assert rows["composed"]["learns"]
    assert rows["aqua"]["modes"] == "one forward"
    assert all(row["about"] and row["source"] for row in rows.values())
    code, out, _ = run(capsys, "codecs")
    assert code == 0
    assert all(name in out for name in CODECS)


def test_one_codec_with_its_options(capsys):
    code, out, _ = run(capsys, "codecs", "--name", "kivi")
    assert code == 0
    assert "bits" in out
    assert "(default 32)" in out
    code, _, err = run(capsys, "codecs", "--name", "kivy")
    assert code == 2
    assert err.startswith("error: no codec 'kivy'; there are exact, composed,")


def test_a_lab_prints_its_table_and_keeps_what_it_is_made_of(capsys, lab_file, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = run(capsys, "lab", lab_file, "-o", tmp_path)
    assert code == 0, err
    rows = [
        line.split() for line in out.splitlines() if line.split()[:1] and line.split()[0] in ("four", "two", "ours")
    ]
    assert [row[0] for row in rows] == ["ours", "two", "four"]  # 2 + 4 and 4 + 4 bits: groups of 8 have two float16
    assert "KLD less four's" in out
    names = {path.name for path in tmp_path.iterdir() if not path.name.endswith(".json")}
    assert names == {"methods.csv", "methods.md", "pareto-stdlib-64-4-0.png"}
    assert (tmp_path / "methods.csv").read_text().count("\n") == 4
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert run(capsys, "lab", lab_file, "-o", tmp_path)[0] == 0
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_eval_takes_a_codec_by_name_and_finds_what_the_lab_measured(capsys, lab_file, tiny_folder, tmp_path):
    assert run(capsys, "lab", lab_file, "-o", tmp_path)[0] == 0
    words = ["eval", "--model", tiny_folder, "--context", "64", "--format", "json"]
    same = [*words, "--mode", "all-coded", "--coded-sinks", "4", "--windows", "3", "--codec", "int:bits=4,group=8",
            "--metrics", "perplexity,agreement,kld", "-o", tmp_path]  # fmt: skip
    files = set(tmp_path.glob("*.json"))
    code, out, err = run(capsys, *same)
    assert code == 0, err
    (record,) = json.loads(out)
    assert record["config"]["codec"]["keys"] == {"codec": "int", "bits": 4, "group": 8}
    assert set(tmp_path.glob("*.json")) == files
    for mode in ("exact-schedule", "token", "chunk"):
        code, out, err = run(capsys, *words, "--codec", "kivi:group=8", "--mode", mode, "--windows", "1",
                             "--chunk-size", "16", "--residual", "16", "--page-size", "16",
                             "--metrics", "kld")  # fmt: skip
        assert code == 0, err
        assert json.loads(out)[0]["metrics"]["coded_share"]["value"] > 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "--codec", "kivy"], "no codec 'kivy'"),
        (["eval", "--codec", "kivi:bits=9"], "codec kivi: bits: Input should be less than or equal to 8"),
        (["eval", "--codec", "kivi", "--codebooks", "x.safetensors"], "give codec or codebooks"),
        (["eval", "--codec", "aqua/exact"], "codes keys and values together"),
        (["lab", "missing.toml"], "cannot read the configuration file missing.toml"),
        (["recommend", "--max-ppl", "much"], "--max-ppl takes 1% or 0.01, not 'much'"),
        (["recommend", "--bits", "4", "--memory", "lots"], "--memory takes 24GiB"),
        (["recommend", "--bits", "4", "--exact", "four"], "SINKS/NEWEST"),
        (["recommend"], "nothing is asked"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_code_2(capsys, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *words)
    last = err.strip().splitlines()[-1]
    assert (code, out) == (2, "")
    assert last.startswith("error: ")
    assert message in last


def test_recommend_names_the_smallest_that_does_it(capsys, lab_file, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert run(capsys, "lab", lab_file, "-o", tmp_path)[0] == 0
    words = ["recommend", "--model", tiny_folder, "--results", tmp_path]
    code, out, err = run(capsys, *words, "--max-kld", "100", "--memory", "1GiB")
    assert code == 0, err
    assert out.startswith("composed:num_subspaces=8,nbits=4,mean=turning,iterations=2: 2 bits an element")
    assert "not measured past 64 tokens" in out
    assert "pqkv eval --model" in out
    code, out, err = run(capsys, *words, "--max-kld", "0.0000000001")
    assert code == 2
    assert "nothing that was measured" in err
    assert "loses least" in err
    code, _, err = run(capsys, *words, "--bits", "4", "--exact", "0/0")
    assert code == 2
    assert "nothing was measured of" in err
    code, _, err = run(capsys, *words, "--bits", "4", "--memory", "10KB".replace("KB", "kB"))
    assert code == 2
    assert "the weights take" in err


def test_recommend_asks_before_it_measures(capsys, lab_file, tiny_folder, tmp_path, monkeypatch):
    words = ["recommend", "--model", tiny_folder, "--results", tmp_path, "--lab", lab_file, "--max-kld", "100"]
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    code, _, err = run(capsys, *words)
    assert code == 2
    assert "measuring 3 methods takes about" in err
    assert "not measured; give --yes" in err
    assert not list(tmp_path.glob("*.json"))
    code, _, err = run(capsys, *words, "--yes")
    assert code == 0, err
    assert len(list(tmp_path.glob("*.json"))) == 3
