"""A corpus, a tiny model and codebooks for it, for everything that runs a grid."""

import pytest
from grids import trained
from models import write_corpus

from pqkv.lm import load_model

NAMES = [f"{i:02}.txt" for i in range(4)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="session")
def text(folder):
    return write_corpus(folder / "prose", NAMES)


@pytest.fixture(scope="session")
def calibration(folder):
    return write_corpus(folder / "calibration", NAMES, seed=1)


@pytest.fixture(scope="session")
def lm(tiny_folder):
    return load_model(str(tiny_folder))


@pytest.fixture(scope="session")
def file4(lm, folder, calibration):
    return trained(lm, folder / "four.safetensors", calibration)


@pytest.fixture(scope="session")
def base(tiny_folder, text, file4):
    """Two windows of 150 tokens whose cache seals pages from the fortieth on."""
    return {
        "model": str(tiny_folder), "data": str(text), "codebooks": (file4,), "context": (150,), "windows": 2,
        "page_size": 16, "residual": 32,
    }  # fmt: skip
