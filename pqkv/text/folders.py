"""Walking a folder: the same files in the same order on every machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pqkv.text.reading import explained


def files_below(root: Path, enters: Callable[[str], bool]) -> list[tuple[str, Path]]:
    """Return (relative name with forward slashes, path) of every regular file below `root`, sorted by that name.

    `enters` says by its bare name whether a folder is entered. Links to folders are not followed: they may lead
    in circles. Raises `DataError` for a folder that cannot be listed, rather than passing over what is in it.
    """
    with explained(root):
        return sorted(_walk(root, enters))


def _walk(root: Path, enters: Callable[[str], bool]) -> Iterator[tuple[str, Path]]:
    for folder, folders, files in os.walk(root, onerror=_fail):
        folders[:] = [name for name in folders if enters(name)]
        for name in files:
            path = Path(folder, name)
            if path.is_file():
                yield path.relative_to(root).as_posix(), path


def _fail(error: OSError) -> None:
    raise error
