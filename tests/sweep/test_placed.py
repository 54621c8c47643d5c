"""Files that go to other machines: packed alike, unpacked once."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pqkv.sweep.cells import SweepCell
from pqkv.sweep.placed import local_files, packed, unpacked
from pqkv.sweep.process import Limits
from pqkv.sweep.ray_task import run_cell


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


def test_links_are_what_they_lead_to(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "blob").write_bytes(b"w" * 10)
    (tmp_path / "elsewhere" / "weights").symlink_to("../blob")  # as in Hugging Face's cache
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    place = unpacked(packed([Path("model")]), tmp_path / "node")
    assert (place / "model" / "weights").read_bytes() == b"w" * 10
    assert not any(path.is_symlink() for path in place.rglob("*"))


def test_what_a_node_cannot_do_is_the_failure_of_its_cell():
    cell = SweepCell("eval", {}, {"context": 48}, 1, 48, 96, ("", "", ""))
    sent = run_cell(cell, 1, False, Limits(1.0, 1e9), b"no archive")
    assert (sent.over.found["status"], sent.over.cause, sent.records) == ("failed", "error", [])
    assert sent.over.found["reason"].startswith("its node could not run it: ReadError: ")
    assert b"Traceback" in sent.log
    assert pickle.loads(pickle.dumps(sent)) == sent


def test_bundled_models_and_texts_need_no_files():
    assert local_files({"model": "reference", "data": "stdlib"}) == []
