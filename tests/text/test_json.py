import gzip
import json

import pytest
from loading import error, load, pairs

from pqkv.text import load_corpus

ROWS = [{"text": "one", "source": "wiki"}, {"text": "two\nlines"}, {"title": "T", "text": "three"}]


def named(path):
    return [("wiki", "one"), (f"{path.name}:2", "two\nlines"), ("T", "three")]


@pytest.mark.parametrize("name", ["a.json", "A.JSON", "a.json.gz"])
@pytest.mark.parametrize(
    "content",
    [json.dumps(ROWS), json.dumps(ROWS, indent=2), "\ufeff\n " + json.dumps(ROWS), "\n".join(map(json.dumps, ROWS))],
)
def test_an_array_of_objects_or_an_object_a_line_are_rows(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(gzip.compress(content.encode()) if name.endswith("gz") else content.encode())
    assert pairs(path) == named(path)


@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_with_a_text_is_one_document(tmp_path, indent):
    (tmp_path / "a.json").write_text(json.dumps({"id": 3, "text": "all of it"}, indent=indent))
    assert pairs(tmp_path / "a.json") == [("a.json:1", "all of it")]


def test_the_splits_of_an_array_are_those_of_the_same_lines(tmp_path):
    rows = [{"text": f"row {number}"} for number in range(60)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split in ("calibration", "test"):
        array, lines = (load_corpus(str(tmp_path / name), split, default="all") for name in ("a.json", "a.jsonl"))
        assert [d.text for d in array.documents] == [d.text for d in lines.documents]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"content": "x", "id": 1}]', "its keys: content, id"),
        ('{"data": [{"text": "x"}]}', "its keys: data"),
        ('{"text": ["a", "b"]}', "its 'text' is an array"),
        ('["a", "b"]', "object 1 has no text (it is a string)"),
        ("[[1]]", "it is an array"),
        ("17", "it is a number"),
        ('[{"text": "fine"}, {"text": null}]', "object 2 has no text (its 'text' is null)"),
        ('[{"text": "cut off', "is not JSON"),
        ('[{"text": "a"}] [', "is not JSON"),
        ("// settings\n{}", "is not JSON"),
        ('{\n "text": "cut off', "is not JSON"),
        ('[{"text": "\\ud83d"}]', "unpaired surrogate"),
        ("[" * 200_000, "is not JSON"),
        ("[]", "holds no text"),
        (" \n", "holds no text"),
    ],
)
def test_json_that_holds_no_rows_of_text_is_refused_and_never_read_as_text(tmp_path, content, says):
    (tmp_path / "a.json").write_text(content)
    assert says in error(tmp_path / "a.json")


def test_a_line_without_text_names_its_keys(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"content": "y", "id": 1}\n')
    assert "a.jsonl, line 2 has no text (its keys: content, id)" in error(tmp_path / "a.jsonl")


def test_settings_beside_a_text_are_passed_over_and_told(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    (tmp_path / "tsconfig.json").write_text("// comments\n{}")
    corpus = load(tmp_path)
    assert [document.name for document in corpus.documents] == ["a.txt"]
    assert corpus.passed_over == (
        "1 passed over (JSON without a text): package.json (its keys: name)",
        "1 passed over (not JSON): tsconfig.json",
    )


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}, {"text": "cut', '[{"text": "a"}, {"t": "b"}]', '{"text": "a"}\n{"text": "cut']
)
def test_rows_that_are_damaged_are_no_settings_and_a_folder_is_not_read_without_them(tmp_path, content):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "rows.json").write_text(content)
    assert "rows.json" in error(tmp_path)


def test_compressed_json_in_a_folder_is_data_and_must_hold_text(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(b'{"content": "x"}\n'))
    assert "rows.json.gz, line 1 has no text" in error(tmp_path)
