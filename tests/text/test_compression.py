import bz2
import gzip
import lzma

import pyarrow as pa
import pytest
from loading import error, load

from pqkv.text.compression import plain_name


def zstandard(data):
    return pa.Codec("zstd").compress(data, asbytes=True)


PACKED = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zst": zstandard,
    "zstd": zstandard,
}
LINES = b"".join(b'{"text": "row %d, something long enough"}\n' % number for number in range(3000))


@pytest.mark.parametrize("suffix", [*PACKED, "ZST", "Bz2"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json"])
def test_compressed_rows_are_the_rows_that_were_compressed(tmp_path, name, suffix):
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(PACKED[suffix.lower()](LINES))
    found = load(path).documents
    assert len(found) == 3000
    assert (found[2].name, found[2].text) == (f"{path.name}:3", "row 2, something long enough")


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("name", ["book.txt", "book"])
def test_compressed_text_is_the_text(tmp_path, name, suffix):
    text = "Größe\r\n" * 40_000
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(PACKED[suffix](text.encode()))
    assert [document.text for document in load(path).documents] == [text]


def test_zstd_frames_one_after_another_are_one_file(tmp_path):
    path = tmp_path / "rows.jsonl.zst"
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00note"
    path.write_bytes(zstandard(LINES) + skippable + zstandard(LINES))
    assert len(load(path).documents) == 6000


@pytest.mark.parametrize("suffix", ["bz2", "zst"])
@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-3], lambda data: data[: len(data) // 2], lambda data: data[:3], lambda data: b"no " + data],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "book.txt", "table.csv", "table.parquet"])
def test_a_damaged_file_is_an_error_of_one_line_in_a_folder_too(tmp_path, name, suffix, damage):
    path = tmp_path / f"{name}.{suffix}"
    path.write_bytes(damage(PACKED[suffix](LINES)))
    assert f"{path.name} is damaged or cut short" in error(path)
    assert f"{path.name} is damaged or cut short" in error(tmp_path)


def test_a_flipped_bit_is_damage_where_the_format_has_a_checksum(tmp_path):
    magic, with_checksum, last_raw_block = b"\x28\xb5\x2f\xfd", b"\x24", (len(b"text") << 3 | 1).to_bytes(3, "little")
    frame = magic + with_checksum + bytes([len(b"text")]) + last_raw_block + b"text" + b"none"
    (tmp_path / "a.txt.zst").write_bytes(frame)
    assert "a.txt.zst is damaged or cut short" in error(tmp_path / "a.txt.zst")
    packed = bytearray(bz2.compress(LINES))
    packed[len(packed) // 2] ^= 1
    (tmp_path / "a.txt.bz2").write_bytes(packed)
    assert "a.txt.bz2 is damaged or cut short" in error(tmp_path / "a.txt.bz2")


def test_what_follows_a_zstd_frame_and_is_none_is_damage(tmp_path):
    (tmp_path / "rows.jsonl.zst").write_bytes(zstandard(LINES) + b"and more")
    assert "rows.jsonl.zst is damaged" in error(tmp_path / "rows.jsonl.zst")


def test_a_window_beyond_what_is_unpacked_says_how_to_unpack_it(tmp_path):
    magic, no_size, window, last_block = b"\x28\xb5\x2f\xfd", b"\x00", bytes([(31 - 10) << 3]), b"\x01\x00\x00"
    (tmp_path / "rows.jsonl.zst").write_bytes(magic + no_size + window + last_block)
    assert "zstd -d --long=31" in error(tmp_path / "rows.jsonl.zst")


def test_a_missing_compressed_file_is_missing_and_not_damaged(tmp_path):
    assert "no file or folder" in error(tmp_path / "rows.jsonl.zst")


@pytest.mark.parametrize(
    ("name", "plain"),
    [("A.JSONL.ZST", "a.jsonl"), ("a.txt", "a.txt"), ("a.gz", "a"), ("a.tar.xz", "a.tar"), (".gz", ".gz")],
)
def test_a_plain_name_is_without_the_compression(name, plain):
    assert plain_name(name) == plain
