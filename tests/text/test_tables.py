import csv
import gzip

import pyarrow as pa
import pytest
from loading import error, load, pairs
from pyarrow import feather, ipc


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("A.CSV", ","), ("a.tsv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_rows_of_a_csv_are_documents_named_as_rows_are(tmp_path, name, delimiter, end):
    with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
        written = csv.writer(file, delimiter=delimiter, lineterminator=end)
        written.writerows([["id", "text", "title"], [1, 'a "quoted", \ttext\r\nof two lines', "T"], [2, "plain", ""]])
    assert pairs(tmp_path / name) == [("T", 'a "quoted", \ttext\r\nof two lines'), (f"{name}:2", "plain")]


def test_a_field_may_be_longer_than_pythons_own_limit_which_is_left_as_it_was(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(f"text\n{'x' * (before + 1)}\n")
    assert len(pairs(tmp_path / "a.csv")[0][1]) == before + 1
    assert csv.field_size_limit() == before


def test_blank_lines_are_no_rows_and_blank_texts_are_told(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n\n1,a\n2,\n\n3,""\n4,d\n')
    corpus = load(tmp_path / "a.csv")
    assert [document.name for document in corpus.documents] == ["a.csv:1", "a.csv:4"]
    assert corpus.passed_over == ("1 passed over (without text): a.csv (2 of 4 rows)",)


def test_a_compressed_csv_is_read_too(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"text\nzipped\n"))
    assert pairs(tmp_path / "a.csv.gz") == [("a.csv.gz:1", "zipped")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("sentence,label\nx,1\n", "has no column 'text' (its columns: sentence, label)"),
        ("text;id\nx;1\n", "has no column 'text' (its columns: text;id)"),
        ("Text\nx\n", "(its columns: Text)"),
        ("text,text\na,b\n", "more than one column 'text'"),
        ("id,text\n1,a\n2,one, two\n", "line 3 has 3 fields under 2 columns"),
        ("id,text\n1\n", "line 2 has 1 fields under 2 columns"),
        ('id,text\n1,"never closed\n2,b\n', "line 3 is not CSV"),
        ('id,text\n1,"a"b\n', "line 2 is not CSV"),
        ("id,text\n", "holds no text"),
        ("", "holds no text"),
    ],
)
def test_a_csv_that_is_none_or_has_no_text_is_refused_and_never_read_as_text(tmp_path, content, says):
    (tmp_path / "a.csv").write_text(content)
    assert says in error(tmp_path / "a.csv")


def test_a_table_without_a_text_beside_one_is_passed_over_and_told(tmp_path):
    (tmp_path / "a.csv").write_text("text\nx\n")
    (tmp_path / "b.csv").write_text("year,count\n1,2\n")
    corpus = load(tmp_path)
    assert [document.text for document in corpus.documents] == ["x"]
    assert corpus.passed_over == ("1 passed over (no column 'text'): b.csv (year, count)",)


def write_arrow(path, table, new):
    with new(str(path), table.schema) as sink:
        sink.write_table(table, max_chunksize=2)


@pytest.mark.parametrize("new", [ipc.new_file, ipc.new_stream])
def test_arrow_files_and_the_streams_that_datasets_saves_are_rows(tmp_path, new):
    table = pa.table({"id": [1, 2, 3], "text": ["one", None, "three"], "title": ["A", "B", None]})
    write_arrow(tmp_path / "a.arrow", table, new)
    assert pairs(tmp_path / "a.arrow") == [("A", "one"), ("a.arrow:3", "three")]
    assert load(tmp_path / "a.arrow").passed_over == ("1 passed over (without text): a.arrow (1 of 3 rows)",)


def test_feather_is_arrow(tmp_path):
    feather.write_feather(pa.table({"text": ["one", "two"]}), str(tmp_path / "A.FEATHER"))
    assert pairs(tmp_path / "A.FEATHER") == [("A.FEATHER:1", "one"), ("A.FEATHER:2", "two")]


@pytest.mark.parametrize("new", [ipc.new_file, ipc.new_stream])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no" * 200])
def test_a_damaged_arrow_file_is_an_error(tmp_path, new, damage):
    write_arrow(tmp_path / "a.arrow", pa.table({"text": ["something"] * 100}), new)
    (tmp_path / "a.arrow").write_bytes(damage((tmp_path / "a.arrow").read_bytes()))
    assert "a.arrow is no arrow file, or a damaged one" in error(tmp_path / "a.arrow")


def test_arrow_without_a_column_of_text_names_those_it_has(tmp_path):
    write_arrow(tmp_path / "a.arrow", pa.table({"indices": [1, 2]}), ipc.new_stream)
    assert "(its columns: indices)" in error(tmp_path / "a.arrow")
    write_arrow(tmp_path / "b.arrow", pa.table({"text": [1, 2]}), ipc.new_stream)
    assert "holds int64, not text" in error(tmp_path / "b.arrow")


def test_a_data_set_saved_by_datasets_is_its_rows(tmp_path):
    import datasets

    datasets.Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(str(tmp_path / "saved"))
    corpus = load(tmp_path / "saved")
    assert [document.text for document in corpus.documents] == ["one", "two"]
    assert all("json" in line for line in corpus.passed_over)
