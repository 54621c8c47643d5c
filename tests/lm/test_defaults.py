"""Default codebooks look for a place before they are trained, and are read from places that cannot be written."""

import tempfile

import pytest
import torch

from pqkv import keeping
from pqkv.config import TrainConfig
from pqkv.errors import CodebookError
from pqkv.keeping import Place
from pqkv.lm import defaults
from pqkv.lm.defaults import default_codebooks
from pqkv.lm.load import load_model

CONFIG = {"bits": 4, "samples": 600, "calibration_tokens": 1024, "context": 256, "iterations": 1}


@pytest.fixture(scope="module")
def lm(tiny_folder):
    return load_model(str(tiny_folder))


@pytest.fixture
def config():
    return TrainConfig.parse(CONFIG)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A file that variables and home point below: nothing can be written there, not even by root."""
    path = tmp_path / "file"
    path.touch()
    monkeypatch.setenv("PQKV_CACHE", str(path / "cache"))
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return path


def untouched():
    pytest.fail("calibrated although the codebooks cannot be kept")


def test_a_place_is_looked_for_before_the_training(lm, config, nowhere, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(nowhere))
    keeping._temporary_folder.cache_clear()
    with pytest.raises(CodebookError, match="PQKV_CACHE"):
        default_codebooks(lm, config, calibrated=untouched)


def test_a_folder_below_the_place_that_cannot_be_written_is_noticed_before_the_training(
    lm, config, monkeypatch, tmp_path
):
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path))
    (tmp_path / "codebooks").touch()
    with pytest.raises(CodebookError, match="cannot write"):
        default_codebooks(lm, config, calibrated=untouched)


def test_codebooks_are_kept_elsewhere_where_the_folder_named_cannot_be_written(
    lm, config, nowhere, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    _, _, path = default_codebooks(lm, config)
    assert path.parent == tmp_path / "xdg" / "pqkv" / "codebooks"


def test_codebooks_in_a_folder_that_cannot_be_written_are_read(lm, config, monkeypatch, tmp_path):
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "shared"))
    books, _, path = default_codebooks(lm, config)
    place = Place((tmp_path / "shared",), tmp_path / "own")  # root can write wherever there is a folder
    monkeypatch.setattr(defaults, "cache_place", lambda: place)
    again, _, where = default_codebooks(lm, config, calibrated=untouched)
    assert where == path
    assert torch.equal(again.keys[0].centroids, books.keys[0].centroids)


def test_codebooks_are_one_file_whether_what_is_left_out_is_said_or_meant(lm, config):
    said = config.model_copy(update={"leave_out": 4})
    assert defaults._name(lm, said) == defaults._name(lm, config)
    assert defaults._name(lm, config.model_copy(update={"leave_out": 0})) != defaults._name(lm, config)
