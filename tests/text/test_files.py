import gzip
import json
import lzma
import os

import pytest
from loading import error, load

from pqkv.errors import DataError
from pqkv.text.reading import explained

UNDER_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def texts(path):
    return [document.text for document in load(path).documents]


def test_a_file_is_one_document_and_its_split_is_all_whatever_the_default(tmp_path):
    (tmp_path / "book.txt").write_text("Once upon a time")
    corpus = load(tmp_path / "book.txt")
    assert (corpus.name, corpus.split) == ("book.txt", "all")
    assert [(document.name, document.text) for document in corpus.documents] == [("book.txt", "Once upon a time")]


def test_text_is_kept_as_it_is_but_for_a_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\ntwo\u2028three\n".encode())
    assert texts(tmp_path / "a.txt") == ["one\r\ntwo\u2028three\n"]


def test_any_file_of_text_will_do_and_may_be_compressed(tmp_path):
    (tmp_path / "main.c").write_text("int main;")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (tmp_path / "c.TXT.XZ").write_bytes(lzma.compress(b"squeezed"))
    assert texts(tmp_path / "main.c") == ["int main;"]
    assert texts(tmp_path / "b.txt.gz") == ["zipped"]
    assert texts(tmp_path / "c.TXT.XZ") == ["squeezed"]


def test_a_folder_is_its_files_of_text_sorted_by_relative_name(tmp_path):
    root = tmp_path / "corpus"
    for name in ("b.txt", "a/z.md", "a.text", "C.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"text of {name}")
    (root / "rows.jsonl").write_text('{"text": "row one"}\n{"text": "row two"}\n')
    (root / "picture.png").write_bytes(b"\x89PNG\0\0")
    (root / "latin.csv").write_bytes(b"caf\xe9")
    (root / "empty.txt").write_text(" \n")
    for hidden in (".git/config", "__pycache__/m.py", ".notes.txt"):
        (root / hidden).parent.mkdir(exist_ok=True)
        (root / hidden).write_text("hidden")
    corpus = load(root)
    assert corpus.name == "corpus"
    assert [document.name for document in corpus.documents] == [
        "C.py",
        "a.text",
        "a/z.md",
        "b.txt",
        "rows.jsonl:1",
        "rows.jsonl:2",
    ]


def test_a_corpus_says_the_same_wherever_its_folder_lies(tmp_path, monkeypatch):
    for place in ("here", "elsewhere/deep"):
        (tmp_path / place / "set").mkdir(parents=True)
        (tmp_path / place / "set" / "a.txt").write_text("alike")
    first = load(tmp_path / "here" / "set").describe()
    assert first == load(tmp_path / "elsewhere" / "deep" / "set").describe()
    monkeypatch.chdir(tmp_path / "here" / "set")
    assert load(".").describe() == first
    assert str(tmp_path) not in json.dumps(first)


def test_files_of_a_folder_are_divided_by_their_relative_names(tmp_path):
    # of these twelve, sha256sum gives only part-4.txt and part-10.txt a number divisible by ten
    for number in range(12):
        (tmp_path / f"part-{number}.txt").write_text(f"text {number}")
    by_rule = {split: [d.name for d in load(tmp_path, split).documents] for split in ("calibration", "test")}
    assert by_rule["test"] == ["part-10.txt", "part-4.txt"]
    assert sorted(by_rule["calibration"] + by_rule["test"]) == sorted(f"part-{number}.txt" for number in range(12))


def test_a_split_that_comes_out_empty_says_what_to_do(tmp_path):
    (tmp_path / "part-0.txt").write_text("only one")
    message = error(tmp_path / "part-0.txt", "test")
    assert "test split" in message
    assert "folder or jsonl" in message
    assert load(tmp_path / "part-0.txt", "calibration").split == "calibration"


@pytest.mark.parametrize("content", [b"", b" \n\t\n"])
def test_a_file_without_text_is_an_error(tmp_path, content):
    (tmp_path / "empty.txt").write_bytes(content)
    assert "holds no text" in error(tmp_path / "empty.txt")


def test_a_folder_without_text_is_an_error(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\0" * 10)
    assert "holds no text" in error(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"text\0text", "NUL"), (b"caf\xe9 au lait", "0xe9 at offset 3"), (b"x" * 70_000 + b"\0", "NUL")],
)
def test_a_binary_file_is_an_error_and_so_is_one_in_a_folder_that_claims_to_be_text(tmp_path, content, says):
    (tmp_path / "notes.txt").write_bytes(content)
    assert says in error(tmp_path / "notes.txt")
    assert says in error(tmp_path)


@pytest.mark.parametrize("suffix", ["gz", "xz"])
@pytest.mark.parametrize("damage", [lambda data: data[:-12], lambda data: b"no " + data, lambda data: flipped(data)])
def test_a_damaged_compressed_file_is_an_error(tmp_path, suffix, damage):
    pack = {"gz": gzip.compress, "xz": lzma.compress}[suffix]
    (tmp_path / f"rows.jsonl.{suffix}").write_bytes(damage(pack(b'{"text": "something long enough"}\n' * 50)))
    assert f"rows.jsonl.{suffix} is damaged" in error(tmp_path / f"rows.jsonl.{suffix}")


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes(255 - byte for byte in data[middle : middle + 4]) + data[middle + 4 :]


def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    assert "loop.txt" in error(tmp_path / "loop.txt")


@pytest.mark.skipif(UNDER_ROOT, reason="root may read everything")
def test_an_unreadable_file_or_subfolder_is_an_error(tmp_path):
    (tmp_path / "readable.txt").write_text("text")
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    try:
        assert "permission" in error(tmp_path)
    finally:
        closed.chmod(0o700)


def test_a_denied_permission_is_explained(tmp_path):
    with pytest.raises(DataError, match=r"a\.txt may not be read: permission denied"), explained(tmp_path / "a.txt"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(DataError, match="sub/closed may not be read"), explained(tmp_path):
        raise PermissionError(13, "Permission denied", "sub/closed")


def test_a_file_whose_name_is_not_utf8_still_makes_a_corpus_that_can_be_hashed(tmp_path):
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    except OSError:
        pytest.skip("this file system holds only UTF-8 names")
    corpus = load(tmp_path)
    assert corpus.documents[0].name == "caf\\udce9.txt"
    assert len(corpus.sha256) == 64
