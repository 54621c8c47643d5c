"""Dequantized models are kept: made once, checked when read, made again when damaged, never in the way."""

import json
import logging
import os
import shutil
import stat

import pytest
import torch

pytest.importorskip("gguf", reason="needs the gguf package")
pytest.importorskip("accelerate", reason="transformers reads GGUF files with accelerate alone")

from gguf_made import write_gguf
from models import tiny_model

from pqkv.lm import gguf, kept, load_model
from pqkv.lm.inventory import clear, inventory
from pqkv.lm.kept import file_digest, kept_models


@pytest.fixture
def said(caplog):
    """What pqkv has logged since."""
    caplog.set_level(logging.WARNING, "pqkv")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "pqkv"]


def folder(cache, file):
    return cache / "models" / file_digest(file[0])[:16]


def weights(path):
    lm = load_model(str(path))
    return {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}


def assert_right(path, written):
    found = weights(path)
    assert all(torch.equal(found[name], weight) for name, weight in written.items())


def untouched(*_, **__):
    pytest.fail("dequantized again")


def test_it_is_made_once_and_said_once(cache, file, said, monkeypatch):
    assert_right(*file)
    (line,) = said()
    assert line.startswith("dequantizing tiny.gguf, this once: 0.5 MB in float32 are kept in ")
    assert "pqkv models --clear" in line
    monkeypatch.setattr(gguf, "_dequantize", untouched)
    assert_right(*file)
    assert len(said()) == 1


def test_it_is_named_by_the_files_digest_and_holds_no_path(cache, file):
    load_model(str(file[0]))
    (only,) = (cache / "models").iterdir()
    assert only == folder(cache, file)
    for path in only.glob("*.json"):
        assert str(file[0].parent) not in path.read_text(encoding="utf-8")


def test_a_kept_copy_needs_no_packages(file, monkeypatch):
    load_model(str(file[0]))
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    assert_right(*file)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_copy_is_noticed_and_made_again(cache, file, said, name):
    load_model(str(file[0]))
    path = folder(cache, file) / name
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert_right(*file)
    assert "the kept copy of tiny.gguf is damaged, and made again" in said()
    assert next(kept_models()).is_sound()


@pytest.mark.parametrize("damage", ["a file is gone", "no label", "half a label"])
def test_a_copy_that_is_not_whole_is_made_again(cache, file, damage):
    load_model(str(file[0]))
    label = folder(cache, file) / "kept.json"
    if damage == "a file is gone":
        (folder(cache, file) / "model.safetensors").unlink()
    elif damage == "no label":
        label.unlink()
    else:
        label.write_text(label.read_text()[:100])
    assert_right(*file)
    assert [model.folder for model in kept_models()] == [folder(cache, file)]
    assert next(kept_models()).is_sound()


def test_a_copy_made_by_another_transformers_is_made_again(cache, file, monkeypatch):
    load_model(str(file[0]))
    label = folder(cache, file) / "kept.json"
    content = json.loads(label.read_text())
    label.write_text(json.dumps({**content, "makers": {**content["makers"], "transformers": "5.0.0"}}))
    load_model(str(file[0]))
    assert json.loads(label.read_text()) == content


def test_a_copy_of_another_file_of_the_same_size_is_not_taken_for_it(file, tmp_path):
    load_model(str(file[0]))
    other = tmp_path / "tiny.gguf"
    written = write_gguf(other, tiny_model(dtype=torch.float32, vocab_size=320, seed=1))
    assert other.stat().st_size == file[0].stat().st_size
    assert_right(other, written)
    assert len(list(kept_models())) == 2


def test_without_room_it_is_said_in_one_line_and_goes_on(cache, file, said, monkeypatch):
    full = shutil.disk_usage(file[0])._replace(free=700_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert_right(*file)
    (line,) = said()
    assert line.startswith(
        "tiny.gguf is dequantized at every load: its 0.5 MB in float32 are not kept, as they would take"
    )
    assert list((cache / "models").iterdir()) == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), "SafetensorError"])
def test_a_disk_that_is_full_after_all_is_one_line_and_leaves_nothing(cache, file, said, monkeypatch, error):
    from safetensors import SafetensorError
    from transformers import PreTrainedModel

    def save(self, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device") if isinstance(error, str) else error

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    assert_right(*file)
    assert "No space left on device" in said()[-1]
    assert list((cache / "models").iterdir()) == []


def test_without_any_place_it_goes_on(file, said, monkeypatch):
    from pqkv.keeping import Place

    monkeypatch.setattr(kept, "cache_place", lambda: Place((), None))
    assert_right(*file)
    assert "not kept, as no folder can be written (set PQKV_CACHE" in said()[-1]


def test_a_copy_that_others_put_where_nothing_can_be_written_is_read(cache, file, tmp_path, monkeypatch):
    from pqkv.keeping import Place

    load_model(str(file[0]))
    monkeypatch.setattr(kept, "cache_place", lambda: Place((cache,), tmp_path / "own"))
    monkeypatch.setattr(gguf, "_dequantize", untouched)
    assert_right(*file)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_who_may_read_the_folder_may_read_its_files(cache, file):
    load_model(str(file[0]))
    readable = stat.S_IMODE(folder(cache, file).stat().st_mode) & 0o444
    assert {stat.S_IMODE(path.stat().st_mode) & 0o444 for path in folder(cache, file).iterdir()} == {readable}


def test_two_processes_that_make_it_at_once_leave_one_sound_copy(cache, file, monkeypatch):
    """The second finds the first's when its own is done."""
    make = gguf.read_pretrained

    def slow(*arguments, **settings):
        found = make(*arguments, **settings)
        if settings.get("gguf"):
            monkeypatch.setattr(gguf, "read_pretrained", make)
            monkeypatch.setattr(os, "getpid", lambda: 1)
            load_model(str(file[0]))
            monkeypatch.undo()
            monkeypatch.setenv("PQKV_CACHE", str(cache))
        return found

    monkeypatch.setattr(gguf, "read_pretrained", slow)
    assert_right(*file)
    assert [path.name for path in (cache / "models").iterdir()] == [folder(cache, file).name]
    assert next(kept_models()).is_sound()


def test_what_is_kept_is_listed_by_digest_and_removed(cache, file):
    load_model(str(file[0]))
    name = file_digest(file[0])[:12]
    (entry,) = [entry for entry in inventory() if entry.copy]
    assert (entry.name, entry.family, entry.there) == (name, "llama", "kept, of tiny.gguf")
    assert entry.parameters == sum(weight.numel() for weight in file[1].values())
    ((removed, size),) = clear(name)
    assert removed == entry
    assert size > 4 * entry.parameters
    assert list((cache / "models").iterdir()) == []


def test_what_a_killed_process_left_is_listed_and_removed(cache, file):
    load_model(str(file[0]))
    begun = cache / "models" / ".0123456789abcdef.77.tmp"
    begun.mkdir()
    (begun / "model.safetensors").write_bytes(bytes(1000))
    (entry,) = [entry for entry in inventory() if begun in entry.copy]
    assert entry.there == "damaged or never finished"
    assert [size for removed, size in clear(entry.name)] == [1000]
    assert folder(cache, file).exists()
