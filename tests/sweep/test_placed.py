"""Files that go to other machines: packed alike, unpacked once."""

from concurrent.futures import ThreadPoolExecutor

from pqkv.sweep.placed import local_files, packed, unpacked


def test_relative_files_of_a_cell_are_unpacked_under_the_same_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w" * 1000)
    (tmp_path / "text.txt").write_text("text")
    settings = {"model": "model", "data": "text.txt", "codebooks": ["none"], "calibration": {"data": "text.txt"},
                "codec": ["model"], "texts": [str(tmp_path / "text.txt"), "../" + tmp_path.name]}  # fmt: skip
    files = local_files(settings)
    assert [str(path) for path in files] == ["model", "text.txt"]
    archive = packed(files)
    assert archive == packed(files[::-1])
    with ThreadPoolExecutor(4) as several:
        (place,) = set(several.map(lambda _: unpacked(archive, tmp_path / "node"), range(8)))
    assert (place / "model" / "weights").read_bytes() == b"w" * 1000
    assert (place / "text.txt").read_text() == "text"
    assert len(list((tmp_path / "node").iterdir())) == 1


def test_bundled_models_and_texts_need_no_files():
    assert local_files({"model": "reference", "data": "stdlib"}) == []
