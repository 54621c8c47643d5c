"""Where pqkv keeps what it need not make again (codebooks, models, compiled code), wherever it runs: without a home,
for a user without a name, in an installation that cannot be written.
"""

from __future__ import annotations

import functools
import logging
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_LOG = logging.getLogger("pqkv")


@dataclass(frozen=True, slots=True)
class Place:
    """`folder` is where to write, None where nothing can be written; those `passed_over` come before it: they cannot be
    written, but may hold what others have put there.
    """

    passed_over: tuple[Path, ...]
    folder: Path | None


def cache_place() -> Place:
    """The first folder that can be written (it is made if need be) of `$PQKV_CACHE`, `$XDG_CACHE_HOME/pqkv`,
    `~/.cache/pqkv`, and one for this user alone among temporary files.

    What had to be passed over is said once, by a warning of the logger `pqkv`.
    """
    passed_over: list[Path] = []
    for folder in _lasting_folders():
        if can_write(folder):
            if passed_over:
                _say(f"{_named(passed_over)}; pqkv keeps codebooks, models and compiled code in {folder}")
            return Place(tuple(passed_over), folder)
        passed_over.append(folder)
    last = _temporary_folder()
    if last is not None:
        _say(
            f"{_named(passed_over)}; pqkv keeps codebooks, models and compiled code in {last} until temporary files "
            "are removed: set PQKV_CACHE (for compiled code alone NUMBA_CACHE_DIR) to a folder that lasts"
        )
    return Place(tuple(passed_over), last)


def can_write(folder: Path) -> bool:
    """Whether a file can be made in `folder`, which is made if need be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _lasting_folders() -> Iterator[Path]:
    if folder := os.environ.get("PQKV_CACHE"):
        yield Path(folder)
    if folder := os.environ.get("XDG_CACHE_HOME"):
        yield Path(folder) / "pqkv"
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry of this user
        return
    if home.is_absolute():
        yield home / ".cache" / "pqkv"


def _named(folders: list[Path]) -> str:
    return f"{' and '.join(map(str, folders))} cannot be written" if folders else "there is no home folder"


@functools.cache
def _temporary_folder() -> Path | None:
    """A folder that only this user can open, the same in every process, or a new one where someone else has taken its
    name: what is read from it runs as code. None where there are no temporary files.
    """
    try:
        folder = Path(tempfile.gettempdir()) / (f"pqkv-{os.geteuid()}" if hasattr(os, "geteuid") else "pqkv")
        folder.mkdir(mode=0o700, exist_ok=True)
        if _is_private(folder) and can_write(folder):
            return folder
        return Path(tempfile.mkdtemp(prefix="pqkv-"))
    except OSError:
        return None


def _is_private(folder: Path) -> bool:
    """Whether it is a folder, no link to one, of this user, that nobody else can open."""
    found = folder.lstat()
    if not hasattr(os, "geteuid"):  # a system whose temporary files are each user's own
        return stat.S_ISDIR(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


@functools.cache
def _say(message: str) -> None:
    _LOG.warning(message)
