"""Numba functions whose compiled code is kept, wherever there is a place for it."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba

from pqkv.keeping import cache_place, can_write

_LOG = logging.getLogger("pqkv")
_TURNS = threading.Lock()


def compiled(**options: object) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: `numba.njit` with these options, its compiled code kept where Numba does it by itself
    (`NUMBA_CACHE_DIR`, beside the source), else in a folder of pqkv's (see `keeping.cache_place`), else not at all.

    Numba alone would refuse to define the function where the installation and home cannot be written, and without a
    home make a folder called ~ wherever it happens to be.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        beside = Path(function.__code__.co_filename).parent / "__pycache__"
        given = numba.config.CACHE_DIR
        if (given and can_write(Path(given))) or can_write(beside):
            return numba.njit(cache=True, **options)(function)
        own = cache_place().folder
        if own is not None:
            with _cached_in(own / "numba"):
                return numba.njit(cache=True, **options)(function)
        _say_that_nothing_is_kept()
        return numba.njit(**options)(function)

    return decorate


@contextmanager
def _cached_in(folder: Path) -> Iterator[None]:
    """Numba looks for the folder when a function is defined: for other people's functions nothing changes."""
    with _TURNS:
        before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
        try:
            yield
        finally:
            numba.config.CACHE_DIR = before


@functools.cache
def _say_that_nothing_is_kept() -> None:
    _LOG.warning(
        "no folder can be written, so every process compiles its kernels anew; set NUMBA_CACHE_DIR or PQKV_CACHE to "
        "one that can"
    )
