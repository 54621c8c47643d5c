import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from loading import error, load, pairs

from pqkv.text import is_test


def write_lines(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    pack = {".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)
    path.write_bytes(pack(data))
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a.json.gz", "A.JSONL"])
def test_each_line_is_a_document_named_by_its_source_or_its_line(tmp_path, name):
    rows = [{"text": "one", "source": "wiki"}, {"text": "two\nlines\u2028"}, {"title": "T", "text": "three"}]
    path = write_lines(tmp_path / name, rows)
    assert pairs(path) == [("wiki", "one"), (f"{name}:2", "two\nlines\u2028"), ("T", "three")]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "ä"}\r\n\r\n \n{"text": "b"}'.encode())
    assert pairs(tmp_path / "a.jsonl") == [("a.jsonl:1", "ä"), ("a.jsonl:4", "b")]


def test_rows_without_text_in_them_are_left_out(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", [{"text": ""}, {"text": "b"}, {"text": " \n"}])
    assert pairs(path) == [("a.jsonl:2", "b")]


def test_rows_are_divided_by_their_text_so_that_copies_stay_together(tmp_path):
    texts = [f"text {number}" for number in range(40)]
    path = write_lines(tmp_path / "a.jsonl", [{"text": text, "source": "same"} for text in texts + texts])
    test = [document.text for document in load(path, "test").documents]
    assert test == [text for text in texts + texts if is_test(text)]
    assert test
    calibration = [document.text for document in load(path, "calibration").documents]
    assert sorted(test + calibration) == sorted(texts + texts)


@pytest.mark.parametrize(
    "line", [b'{"text": "cut', b"plain words", b'{"text": 1e5}', b'["text"]', b'{"txt": "x"}', b'{"text": null}', b"7"]
)
def test_a_line_that_is_no_row_of_text_is_named_by_file_and_number(tmp_path, line):
    (tmp_path / "rows.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    assert "rows.jsonl, line 3 " in error(tmp_path / "rows.jsonl")


def test_a_line_nested_beyond_reason_is_an_error_like_any_other(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b"[" * 200_000 + b"\n")
    assert "rows.jsonl, line 1 is not JSON" in error(tmp_path / "rows.jsonl")


@pytest.mark.parametrize(("line", "says"), [(b'{"text": "\xff"}', "not UTF-8"), (b"\0\1\2", "binary")])
def test_binary_lines_are_called_that(tmp_path, line, says):
    (tmp_path / "rows.jsonl").write_bytes(line)
    assert says in error(tmp_path / "rows.jsonl")
    assert says in error(tmp_path)


def test_half_a_character_is_refused_before_it_reaches_a_tokenizer(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "\\ud83d\\ude00"}\n{"text": "\\ud83d"}\n')
    assert "line 2 holds an unpaired surrogate" in error(tmp_path / "rows.jsonl")


def test_parquet_rows_are_documents_and_nulls_are_passed_over(tmp_path):
    table = pa.table({"id": [1, 2, 3], "text": ["one", None, "three"], "title": ["A", "B", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert pairs(tmp_path / "a.parquet") == [("A", "one"), ("a.parquet:3", "three")]


def test_the_same_rows_make_the_same_splits_in_parquet_and_json_lines(tmp_path):
    texts = [f"row {number}" for number in range(60)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=7)
    write_lines(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    for split in ("calibration", "test", "all"):
        from_parquet, from_lines = load(tmp_path / "a.parquet", split), load(tmp_path / "a.jsonl", split)
        assert [d.text for d in from_parquet.documents] == [d.text for d in from_lines.documents]


def test_parquet_without_a_column_of_text_names_the_columns_it_has(tmp_path):
    pq.write_table(pa.table({"sentence": ["x"], "label": [1]}), tmp_path / "a.parquet")
    assert "sentence, label" in error(tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "b.parquet")
    assert "int64" in error(tmp_path / "b.parquet")


def test_a_text_column_of_another_string_type_is_read_too(tmp_path):
    column = pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(
        pa.table({"text": column, "name": pa.array(["x", "y", "z"], pa.large_string())}), tmp_path / "a.parquet"
    )
    assert pairs(tmp_path / "a.parquet") == [("x", "a"), ("y", "b"), ("z", "a")]


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: b"", lambda data: b"PAR1 but not really"])
def test_a_damaged_parquet_file_is_an_error(tmp_path, damage):
    pq.write_table(pa.table({"text": ["something"] * 100}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(damage((tmp_path / "a.parquet").read_bytes()))
    assert "a.parquet is no parquet file, or a damaged one" in error(tmp_path / "a.parquet")


def test_parquet_pages_that_are_damaged_in_the_middle_are_an_error(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(2000)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[200:2000] = b"\xff" * 1800
    path.write_bytes(data)
    assert "damaged" in error(path)
