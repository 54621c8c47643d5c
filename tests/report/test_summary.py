"""The report is a function of the records."""

import pytest

from pqkv.errors import RecordError
from pqkv.report import write_report


def test_the_same_records_give_the_same_bytes_in_any_order(make, grid, tmp_path):
    records = [*grid, make(residual=64), make(1, error="broken"), make(data="wikitext")]
    one = write_report(records, tmp_path / "one")
    two = write_report(records[::-1], tmp_path / "two")
    assert [path.name for path in one] == [path.name for path in two]
    assert [path.name for path in one[:2]] == ["summary.csv", "summary.md"]
    for left, right in zip(one, two, strict=True):
        assert left.read_bytes() == right.read_bytes(), left.name
    assert sorted((tmp_path / "one").iterdir()) == sorted(one)


def test_failures_alone_make_a_report(make, tmp_path):
    paths = write_report([make(error="broken")], tmp_path)
    assert [path.name for path in paths] == ["summary.csv", "summary.md"]


def test_no_records_are_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(RecordError, match="no records"):
        write_report([], tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(make, tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    with pytest.raises(RecordError) as caught:
        write_report([make()], blocker / "report")
    assert "\n" not in str(caught.value)
