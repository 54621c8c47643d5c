"""One compiled function on as many threads as torch may use now, each taking units of work until none is left.

The threads are torch's own: those of the OpenMP library that it brings. A second pool beside them, Numba's or one of
sleeping threads, has to share the cores with torch's threads, which go on looking for work for many milliseconds after
an operation; Numba's sets torch's number of threads besides, or aborts the process when two Python threads call. Where
that library cannot be had, and in a forked process, which has none of its threads, Python threads take their place.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import numpy as np
import torch

from pqkv.workers import share

WORTH = 40.0  # microseconds of work on one thread from which on two are faster


class _Team:
    """Where the function lies that runs another on OpenMP's threads; 0 where it cannot be used."""

    def __init__(self) -> None:
        self.address = _find()
        if hasattr(os, "register_at_fork"):  # where there are forks
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self.address = 0


def _find() -> int:
    if not torch.backends.openmp.is_available():
        return 0
    try:
        library = ctypes.CDLL(torch._C.__file__)  # what torch has loaded is looked through, and no other copy
        if library.omp_get_max_threads() != torch.get_num_threads():
            return 0
        return ctypes.cast(library.GOMP_parallel, ctypes.c_void_p).value or 0
    except (OSError, AttributeError):  # an OpenMP without the names of GCC's
        return 0


_TEAM = _Team()


def openmp() -> int:
    """The address of `GOMP_parallel` of torch's OpenMP, or 0 where Python threads have to take its place (`share`)."""
    return _TEAM.address


def run_units(function: Callable[..., bool], units: int, microseconds: float, *arguments: object) -> None:
    """Do `units` of work on torch's number of threads, as it is set now, this one among them.

    `function(launch, threads, taken, *arguments)` is compiled with `nogil` and passes all this to
    `thread_code.on_threads`. `taken`, int64 (1,), counts the units that were begun; whoever is free takes the next one
    by `thread_code.next_unit(taken)`. With fewer than two units, or with so little to do in all (`microseconds` on one
    thread, an estimate) that a second thread would gain nothing, this thread does it alone. Returns when all units are
    done; raises `MemoryError` where a thread could not get the memory that it works in.
    """
    taken = np.zeros(1, np.int64)
    threads = torch.get_num_threads() if units > 1 and microseconds >= WORTH else 1

    def run(launch: int = 0, threads: int = 1) -> None:
        if function(launch, threads, taken, *arguments):
            raise MemoryError(f"{units} units of work on {threads} threads found no memory to work in")

    if threads == 1 or _TEAM.address:  # always on all of torch's threads: OpenMP ends those that a call leaves out
        run(_TEAM.address, threads)
    else:
        share(run, min(threads, units) - 1)
