"""What several folders of tests share: one thread, and models that are loaded or made once."""

from pathlib import Path

import pytest
import torch
from models import sampled_books, tiny_lm

from pqkv.lm.load import REFERENCE_FOLDER, load_model


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist writes groups into the ids
def pytest_collection_modifyitems(items):
    """Tests of a file that share what they made run in one process, which makes it once."""
    for item in items:
        made = item._fixtureinfo.name2fixturedefs.values()
        if item.get_closest_marker("xdist_group") is None and any(found[-1].scope == "module" for found in made):
            item.add_marker(pytest.mark.xdist_group(item.location[0]))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """pytest's workers say how wide the terminal is that they do not have; tables would follow it."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def reference():
    """The bundled model in float32."""
    return load_model()


@pytest.fixture(scope="session")
def tiny():
    """A random Llama in float64: 3 layers, 4 query heads on 2 KV heads, head_dim 16."""
    return tiny_lm()


@pytest.fixture(scope="session")
def books(tiny):
    """8-bit codes, 8 to a vector, for `tiny`."""
    return sampled_books(tiny)


@pytest.fixture(scope="session")
def prose(reference):
    """1,400 tokens of the bundled tokenizer: source text of the standard library."""
    import textwrap

    return torch.tensor(reference.encode(Path(textwrap.__file__).read_text(encoding="utf-8"))[:1400])[None]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A folder that `load_model` reads in no time: a random Llama with the bundled tokenizer."""
    from models import tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model(dtype=torch.float32, vocab_size=4096, num_hidden_layers=2).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((REFERENCE_FOLDER / name).read_bytes())
    return folder
