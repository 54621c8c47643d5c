"""`pqkv generate` as a user meets it: text as it is written, records, refusals."""

import io
import json
import re
import sys
from unicodedata import category

import pytest
from pqkv_cli.main import main

from pqkv.cache.plain import load_export
from pqkv.cpu_path import cpu_path

PROMPT = "def wrap(text, width):"
SMALL = ("--page-size", "8", "--residual", "16")


@pytest.fixture(scope="module")
def books(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("books") / "small.safetensors"
    words = ["train-codebooks", "--model", str(tiny_folder), "--recipe", "product", "--num-subspaces", "4"]
    sizes = ["--nbits", "3", "--samples", "300", "--iterations", "2", "--calibration-tokens", "512", "--context", "256"]
    with pytest.raises(SystemExit) as stop:
        main([*words, *sizes, "-o", str(path)])
    assert stop.value.code == 0
    return path


@pytest.fixture(scope="module")
def asked(tiny_folder, books):
    return ("generate", "--model", tiny_folder, "--codebooks", books, *SMALL, "--tokens", "40")


def run(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def refused(capsys, *words):
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    return err.strip().splitlines()[-1]


def test_text_is_told_as_recorded_and_a_record_is_not_written_again(capsys, asked, tmp_path):
    code, out, err = run(capsys, *asked, "--prompt", PROMPT, "--format", "json", "-o", tmp_path)
    assert code == 0, err
    exact, coded = json.loads(out)
    assert [exact["config"]["cache"], coded["config"]["cache"]] == ["DynamicCache", "small.safetensors"]
    assert len(exact["samples"]["token_ids"]) == len(coded["samples"]["token_ids"]) == 40
    assert coded["metrics"]["coded_share"]["value"] > 0.3
    ids = [record["samples"]["token_ids"] for record in (exact, coded)]
    at = next((i for i, (a, b) in enumerate(zip(*ids, strict=True), 1) if a != b), None)
    assert coded["tables"]["generated"][0]["parts_at"] == at
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert len(files) == 2
    code, out, err = run(capsys, *asked, "--prompt", PROMPT, "-o", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == files
    assert out.startswith("== DynamicCache\n" + exact["tables"]["generated"][0]["text"][:20])
    assert f"parts at token {at}" in out


def test_what_streams_is_the_text_of_the_record(capsys, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, *asked, "--prompt", PROMPT, "-o", tmp_path)
    assert code == 0, err
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    shown = out.split("== ")[1:]
    texts = {record["config"]["cache"]: record["tables"]["generated"][0]["text"] for record in records}
    for part in shown:
        name, text = part.split("\n", 1)
        told = text.split("\n-- ")[0]
        assert told == "".join("\ufffd" if category(c) == "Cc" and c not in "\n\t" else c for c in texts[name])
    tables = shown[-1].split("\n-- ")[1]
    assert max(map(len, tables.split("records: ")[0].splitlines())) <= 80


def test_a_prompt_comes_from_a_file_or_standard_input_all_the_same(capsys, asked, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_text(PROMPT + "\n")
    digests = []
    for words in (["--prompt", PROMPT], ["--prompt-file", tmp_path / "prompt.txt"], []):
        monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT + "\n"))
        code, out, err = run(capsys, *asked[:-1], "20", *words, "--format", "json")
        assert code == 0, err
        digests.append([record["digest"] for record in json.loads(out)])
    assert digests[0] == digests[1] == digests[2]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file are two prompts"),
        (["--prompt-file", "nowhere.txt"], "cannot read the prompt nowhere.txt: No such file"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "a", "--tokens", "0"], "tokens: Input should be greater than or equal to 1"),
        (["--prompt", "a", "--tokens", "5000"], "are beyond the 2048 positions"),
        (["--prompt", "a", "--tokens", "12"], "leave nothing coded"),
        (["--prompt", "a", "--chat"], "has no chat template"),
        (["--prompt", "a", "--temperature", "-1"], "temperature: Input should be greater than or equal to 0"),
        (["--prompt", "a", "--backend", "fault:warp-max"], "is a fault to measure"),
        (["--prompt", "a", "--codec", "kivi:bits=2"], "give codec or codebooks"),
    ],
)
def test_bad_input_is_refused_in_one_line(capsys, asked, words, cause):
    line = refused(capsys, *asked, *words)
    assert line.startswith("error: ")
    assert cause in line


def test_no_prompt_on_a_terminal_is_refused(capsys, asked, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert "no prompt; give a text with --prompt" in refused(capsys, *asked)


def test_the_fewest_tokens_that_are_named_are_coded(capsys, asked):
    words = (*asked[:-1], "1", "--prompt", PROMPT)
    line = refused(capsys, *words)
    least = line.split("raise --tokens to ")[1].split(",")[0]
    assert "leave nothing coded" in refused(capsys, *asked[:-1], int(least) - 1, "--prompt", PROMPT)
    code, out, err = run(capsys, *asked[:-1], least, "--prompt", PROMPT, "--format", "json")
    assert code == 0, err
    assert json.loads(out)[1]["metrics"]["coded_share"]["value"] > 0


def test_export_writes_the_cache_of_a_prompt(capsys, asked, tmp_path):
    words = ["export", *asked[1:-2], "--prompt", PROMPT * 8, "-o", tmp_path / "cache.safetensors"]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    plain = load_export(tmp_path / "cache.safetensors")
    tokens, sinks, in_pages, after = map(int, re.findall(r"\d+", out.splitlines()[0]))
    keys = plain.vectors(0, 1, "keys")
    assert keys.shape[1] == tokens == sinks + in_pages + after
    assert in_pages == 8 * int(plain.tensors["kv_indptr"][1]) > 0
    line = refused(capsys, *words[:-1], tmp_path)
    assert "cannot write" in line
    line = refused(capsys, *words[:-4], "--prompt", "a", *words[-2:])
    assert "leave nothing coded" in line
    assert "give a prompt of " in line
    assert "--tokens" not in line


@pytest.mark.parametrize(
    ("words", "path", "cause"),
    [
        (["--prompt", ""], None, "the prompt is empty"),
        (["--prompt", "a", "--bits", "5"], None, "no default geometry for 5 bits; pick 6, 4"),
        (["--prompt", "a"], "sse2", "PQKV_CPU_PATH=sse2 names no path"),
    ],
)
def test_what_needs_no_model_is_refused_before_one_is_loaded(capsys, monkeypatch, words, path, cause):
    if path is not None:
        monkeypatch.setenv("PQKV_CPU_PATH", path)
    cpu_path.cache_clear()
    try:
        assert cause in refused(capsys, "generate", "--model", "no-such-folder/no-such-model", *words)
    finally:
        cpu_path.cache_clear()
