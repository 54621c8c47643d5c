"""Attention on pages for the CPU: Numba kernels with explicit vector code, every core, codes read where they lie."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def _drop_stale_code(folder: Path) -> None:
    """Remove compiled kernels that are older than any source here. Numba looks only at the file of the outer function,
    and the vector code of all of them comes from `vectors.py`.
    """
    with suppress(OSError):
        newest = max(path.stat().st_mtime for path in folder.glob("*.py"))
        for path in (folder / "__pycache__").glob("*.nb[ic]"):
            if path.stat().st_mtime < newest:
                path.unlink()


_drop_stale_code(Path(__file__).parent)
