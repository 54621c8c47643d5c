"""A tiny model as a GGUF file, and a cache folder of the test's own."""

import pytest
import torch
from models import tiny_model


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is kept goes below the test's own folder."""
    monkeypatch.setenv("PQKV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float32, vocab_size=320)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    """A tiny Llama in Q8_0, Q4_0, Q4_1 and F32, and its weights as they are after that."""
    from gguf_made import write_gguf  # needs the gguf package, without which these tests are skipped

    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_gguf(path, model)
