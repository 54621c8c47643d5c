"""The running interpreter's standard library: a corpus of real text that every installation already has."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

from pqkv.errors import DataError
from pqkv.text.documents import Document, printable
from pqkv.text.folders import files_below
from pqkv.text.passed_over import PassedOver
from pqkv.text.reading import NotTextError, read_text
from pqkv.text.splits import Keyed

# Installed packages are not the standard library, and its tests hold files that are broken on purpose.
LEFT_OUT = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})


def stdlib_documents(root: Path | None = None) -> Iterator[Keyed]:
    """Yield every `*.py` of the library (or of `root`) that is UTF-8, named and keyed by path, as `json/decoder.py`."""
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    if not root.is_dir():
        raise DataError(
            f"this Python keeps no sources of its standard library ({printable(str(root))} is no folder): "
            "give --data FILE or FOLDER"
        )
    # What this corpus leaves out is what it is, and the same for everyone: nothing to tell of.
    for relative, path in files_below(root, lambda folder: folder not in LEFT_OUT, PassedOver()):
        if not relative.endswith(".py"):
            continue
        try:
            text = read_text(path)
        except NotTextError:
            continue
        name = printable(relative)
        yield Keyed(Document(name, text), key=name)
