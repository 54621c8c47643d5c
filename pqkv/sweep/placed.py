"""Files that cells name, taken to machines that have none of them: packed once, unpacked once on each machine."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from pqkv.lock import alone

_NAMES = ("model", "data", "texts", "codebooks", "calibration")


def local_files(settings: dict[str, Any]) -> list[Path]:
    """Relative paths of files and folders that exist here and that `settings` names as model, text or codebooks. An
    absolute path is taken to be the same on every machine.
    """
    found: list[Path] = []

    def look(value: object) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                look(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                look(inner)
        elif isinstance(value, str) and value and not Path(value).is_absolute() and Path(value).exists():
            found.append(Path(value))

    for name in _NAMES:
        look(settings.get(name))
    return list(dict.fromkeys(path for path in found if ".." not in path.parts))


def packed(files: list[Path]) -> bytes:
    """The files as one archive, the same bytes for the same files; a link is what it leads to, as it leads nowhere on
    another machine (models in Hugging Face's cache are folders of links).
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as archive:
        for path in sorted(files):
            archive.add(path, filter=_plain)
    return buffer.getvalue()


def unpacked(archive: bytes, folder: Path | None = None) -> Path:
    """The folder of this machine that holds what `packed` took: unpacked by whoever comes first, for all."""
    base = folder or Path(tempfile.gettempdir()) / f"pqkv-placed-{os.getuid()}"
    base.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = base / hashlib.sha256(archive).hexdigest()[:12]
    with alone(base / f".{place.name}.lock", lambda line: None):
        if not place.exists():
            half = Path(tempfile.mkdtemp(dir=base))
            with tarfile.open(fileobj=io.BytesIO(archive)) as held:
                held.extractall(half, filter="data")
            half.rename(place)
    return place


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
    return member
