"""What a file or folder comes to, for tests of the formats."""

import pytest

from pqkv.errors import DataError
from pqkv.text import load_corpus


def load(path, split=None):
    return load_corpus(str(path), split, default="test")


def pairs(path):
    return [(document.name, document.text) for document in load(path).documents]


def error(path, split=None):
    """The message with which `path` is refused, which is one line."""
    with pytest.raises(DataError) as caught:
        load(path, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)
