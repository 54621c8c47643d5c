"""Walking a folder: the same files in the same order on every machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pqkv.text.passed_over import PassedOver
from pqkv.text.reading import explained


def files_below(root: Path, enters: Callable[[str], bool], passed_over: PassedOver) -> list[tuple[str, Path]]:
    """Return (relative name with forward slashes, path) of every regular file below `root`, sorted by that name.

    `enters` says by its bare name whether a folder is entered. Links to folders are not followed: they may lead
    in circles. What is not entered, not followed or no file is noted in `passed_over`. Raises `DataError` for a folder
    that cannot be listed, rather than passing over what is in it.
    """
    with explained(root):
        return sorted(_walk(root, enters, passed_over))


def _walk(root: Path, enters: Callable[[str], bool], passed_over: PassedOver) -> Iterator[tuple[str, Path]]:
    for folder, folders, files in os.walk(root, onerror=_fail):
        for name in folders:
            path = Path(folder, name)
            if not enters(name):
                passed_over.add(f"{path.relative_to(root).as_posix()}/", "hidden" if name[0] == "." else "by its name")
            elif path.is_symlink():
                passed_over.add(f"{path.relative_to(root).as_posix()}/", "a link to a folder")
        folders[:] = [name for name in folders if enters(name)]
        for name in files:
            path = Path(folder, name)
            relative = path.relative_to(root).as_posix()
            if path.is_file():
                yield relative, path
            else:
                passed_over.add(relative, "a link that leads nowhere" if path.is_symlink() else "no regular file")


def _fail(error: OSError) -> None:
    raise error
