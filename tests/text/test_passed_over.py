import json
import os
import zipfile

import pytest
from loading import error, load

from pqkv.text import Corpus, load_corpus
from pqkv.text.passed_over import PassedOver


def test_nothing_in_a_folder_is_passed_over_in_silence(tmp_path):
    files = {
        "a.txt": b"text",
        "b/picture.png": b"\x89PNG\0\0",
        "model.bin": b"\0",
        "latin.csv": b"caf\xe9",
        "wide.log": "text".encode("utf-16"),
        "empty.md": b" \n",
        "rows.jsonl": b'{"text": "row"}\n{"text": ""}\n',
        "none.csv": b"year,count\n1,2\n",
        "book.PDF": b"%PDF-1.4",
        "all.tar.gz": b"\x1f\x8b",
        ".git/config": b"hidden",
        "b/.notes.txt": b"hidden",
        "b/__pycache__/m.py": b"compiled",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    corpus = load(tmp_path)
    assert [document.name for document in corpus.documents] == ["a.txt", "rows.jsonl:1"]
    assert corpus.passed_over == (
        "1 passed over (UTF-16): wide.log",
        "1 passed over (a link that leads nowhere): gone.txt",
        "1 passed over (a link to a folder): b/up/",
        "1 passed over (an archive): all.tar.gz",
        "2 passed over (binary): b/picture.png, model.bin",
        "1 passed over (by its name): b/__pycache__/",
        "2 passed over (hidden): .git/, b/.notes.txt",
        "1 passed over (no column 'text'): none.csv (year, count)",
        "1 passed over (no plain text): book.PDF",
        "1 passed over (no regular file): pipe",
        "1 passed over (not UTF-8): latin.csv",
        "2 passed over (without text): empty.md, rows.jsonl (1 of 2 rows)",
    )
    assert str(tmp_path) not in json.dumps(corpus.passed_over)


def test_what_was_passed_over_identifies_nothing(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    before = load(tmp_path)
    (tmp_path / "model.bin").write_bytes(b"\0")
    after = load(tmp_path)
    assert (before.passed_over, after.passed_over) == ((), ("1 passed over (binary): model.bin",))
    assert (after.sha256, after.describe()) == (before.sha256, before.describe())


def test_every_split_tells_the_same(tmp_path):
    for number in range(12):
        (tmp_path / f"part-{number}.txt").write_text(f"text {number}")
    (tmp_path / "model.bin").write_bytes(b"\0")
    assert {load(tmp_path, split).passed_over for split in ("calibration", "test", "all")} == {
        ("1 passed over (binary): model.bin",)
    }


def test_a_folder_of_which_nothing_is_read_says_what_is_in_it(tmp_path):
    (tmp_path / "rows.csv").write_text("content\nx\n")
    (tmp_path / "model.bin").write_bytes(b"\0")
    told = "1 passed over (binary): model.bin; 1 passed over (no column 'text'): rows.csv (content)"
    assert f"holds no text ({told})" in error(tmp_path)


def test_many_names_are_counted_and_the_first_told():
    noted = PassedOver()
    for number in (7, 3, 1, 5, 2, 4, 6):
        noted.add(f"{number}.bin", "binary")
    noted.add("new\nline", "hidden", "x" * 100)
    assert noted.lines() == (
        "7 passed over (binary): 1.bin, 2.bin, 3.bin, 4.bin, 5.bin and 2 more",
        "1 passed over (hidden): new\\nline (" + "x" * 60 + "...)",
    )


def test_a_corpus_passes_nothing_over_unless_it_is_said():
    assert Corpus("c", "all", ()).passed_over == ()
    assert load_corpus("stdlib", "test", default="test").passed_over == ()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a.zip", "is an archive: unpack it"),
        ("A.TAR", "is an archive: unpack it"),
        ("a.tar.gz", "is an archive: unpack it"),
        ("a.tar.zst", "is an archive: unpack it"),
        ("a.jsonl.lz4", "is compressed in a way that is not read"),
        ("a.pdf", "is no plain text (.pdf)"),
        ("a.rtf", "is no plain text (.rtf)"),
        ("a.ipynb", "is no plain text (.ipynb)"),
        ("a.XLSX", "is no plain text (.xlsx)"),
        ("a.pickle", "is binary"),
    ],
)
def test_a_format_that_is_not_read_is_named_in_one_line(tmp_path, name, says):
    with zipfile.ZipFile(tmp_path / name, "w") as file:
        file.writestr("text", "text\0")
    assert f"{name} {says}" in error(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.json", "a.jsonl"])
def test_utf_16_is_called_that(tmp_path, name, encoding):
    (tmp_path / name).write_bytes('\ufeff{"text": "x"}'.encode(encoding))
    assert "UTF-16" in error(tmp_path / name)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.md.zst", "A.TXT", "a.jsonl.bz2", "a.ndjson"])
def test_a_file_that_claims_to_be_text_is_not_passed_over(tmp_path, name):
    import bz2
    import gzip

    import pyarrow as pa

    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".zst": lambda b: pa.Codec("zstd").compress(b, asbytes=True)}
    (tmp_path / "fine.txt").write_text("text")
    (tmp_path / name).write_bytes(pack.get((tmp_path / name).suffix, bytes)(b"\0\1\2"))
    assert "binary" in error(tmp_path)


def test_source_and_markup_are_text_as_they_stand(tmp_path):
    for name in ("a.py", "b.html", "c.yaml", "d.xml", "e.tex", "Makefile"):
        (tmp_path / name).write_text(f"<{name}>\n")
    corpus = load(tmp_path)
    assert {document.name: document.text for document in corpus.documents} == {
        name: f"<{name}>\n" for name in ("Makefile", "a.py", "b.html", "c.yaml", "d.xml", "e.tex")
    }
    assert corpus.passed_over == ()
