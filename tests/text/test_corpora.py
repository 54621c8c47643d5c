import subprocess
import sys

import pytest

from pqkv.errors import DataError
from pqkv.text import HUB_SETS, load_corpus


def error(data):
    with pytest.raises(DataError) as caught:
        load_corpus(data, None, default="test")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("data", ["wikitext", "STDLIB", "", "  ", "a\nb", "nul\0byte"])
def test_an_unknown_name_lists_the_known_ones(data):
    message = error(data)
    assert "is called" in message
    for name in ("stdlib", *HUB_SETS):
        assert name in message


@pytest.mark.parametrize("data", ["./missing", "missing.txt", "folder/missing", "Salesforce/wikitext"])
def test_what_looks_like_a_path_is_missed_as_a_file(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert f"no file or folder {data}" in error(data)


def test_a_name_too_long_for_any_file_is_an_error():
    assert "cannot read" in error("x" * 5000)


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.txt").write_text("text")
    assert load_corpus("~/mine.txt", None, default="test").name == "mine.txt"
    assert "home" in error("~nobody-of-this-name/x.txt")


def test_heavy_packages_are_imported_only_when_a_source_needs_them(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    program = (
        "import sys; from pqkv.text import load_corpus; load_corpus(sys.argv[1], None, default='all');"
        "print([name for name in ('datasets', 'pyarrow', 'torch') if name in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.txt")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
