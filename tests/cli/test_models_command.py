"""`pqkv models`: a list for people and for programs, and what --clear says it removed."""

import json
import shutil

import pytest
from pqkv_cli.main import main

from pqkv.lm.named import REFERENCE_FOLDER


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def kept(cache):
    """Codebooks of the bundled model, as training by default would keep them."""
    from pqkv.config import TrainConfig
    from pqkv.lm.defaults import default_codebooks
    from pqkv.lm.load import load_model

    config = TrainConfig.parse({"bits": 2, "samples": 300, "calibration_tokens": 512, "context": 256, "iterations": 1})
    return default_codebooks(load_model(), config)[2]


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["models", *words])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def rows(capsys, *words):
    code, out, _ = run(capsys, *words, "--format", "json")
    assert code == 0
    return {row["model"]: row for row in json.loads(out)}


def test_it_lists_names_families_licences_and_what_is_there(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, _ = run(capsys)
    assert code == 0
    line = next(line for line in out.splitlines() if "reference" in line)
    assert line.split()[:6] == ["reference", "llama", "5.2M", "Apache", "2.0", "bundled"]
    assert "smollm2" in out
    assert "kept copy" not in out  # nothing is kept


def test_bytes_are_those_of_the_files(capsys, kept):
    row = rows(capsys)["reference"]
    assert row["weights_bytes"] == (REFERENCE_FOLDER / "model.safetensors").stat().st_size
    assert row["codebooks_bytes"] == kept.stat().st_size
    assert row["kept_bytes"] == 0


def test_one_model_alone(capsys):
    assert list(rows(capsys, "smollm2")) == ["smollm2"]
    code, out, err = run(capsys, "nonsense")
    assert (code, out) == (2, "")
    assert err.startswith("error: there is nothing of a model called 'nonsense'")


def test_clear_asks_nothing_and_says_what_it_removed_and_how_much(capsys, kept):
    size = kept.stat().st_size
    code, out, _ = run(capsys, "--clear", "smollm2")
    assert (code, out) == (0, "nothing was kept\n")
    code, out, _ = run(capsys, "--clear", "reference")
    assert (code, out) == (0, f"reference: removed default codebooks (1), {size / 1e6:,.1f} MB\n")
    assert not kept.exists()


def test_clear_removes_all_and_says_so_in_json(capsys, kept, cache):
    size = kept.stat().st_size
    code, out, _ = run(capsys, "--clear", "--format", "json")
    assert (code, json.loads(out)) == (0, [{"model": "reference", "removed_bytes": size}])
    shutil.rmtree(cache)
    assert run(capsys, "--clear")[1] == "nothing was kept\n"
