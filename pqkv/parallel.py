"""One compiled function on as many threads as torch may use now, each taking units of work until none is left.

No threading layer of Numba is launched: that of OpenMP sets torch's number of threads, waits busily beside torch's own
threads, and that of its work queue aborts the process when two Python threads call. Here the workers are Python threads
that sleep until there is something to do; the functions release the interpreter's lock (`nogil`) while they run.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
import torch

_WORTH = 40.0  # microseconds of work that pay for waking a thread


class _Call:
    """A call that several threads share. Each part is taken once: by a worker, or back by the caller, who does not wait
    for a thread that has not begun.
    """

    __slots__ = ("_done", "_parts", "_run")

    def __init__(self, run: Callable[[], None], parts: int) -> None:
        self._run: Callable[[], None] | None = run
        self._parts = [None] * parts
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()

    def take_part(self) -> None:
        """Of a worker: do a part, if one is left."""
        run = self._run
        try:
            self._parts.pop()
        except IndexError:
            return
        assert run is not None  # it goes after the last part
        error = None
        try:
            run()
        except BaseException as raised:  # noqa: BLE001 - it is the caller's
            error = raised
        del run  # before the caller hears of it: what has ended keeps no arrays
        self._done.put(error)

    def finish(self, begun: int) -> None:
        """Of the caller, after its own part: take back what none of `begun` workers has begun, wait for the others, and
        raise what one of them raised.
        """
        try:
            while True:
                self._parts.pop()
                begun -= 1
        except IndexError:
            pass
        self._run = None
        errors = [self._done.get() for _ in range(begun)]
        for error in errors:
            if error is not None:
                raise error


class _Workers:
    """Threads that sleep until a call has a part for them."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        self._growing = threading.Lock()
        self._count = 0

    def give(self, call: _Call, parts: int) -> None:
        """Wake as many threads as there are parts."""
        if self._count < parts:
            self._grow(parts)
        for _ in range(parts):
            self._calls.put(call)

    def _grow(self, count: int) -> None:
        with self._growing:
            while self._count < count:
                try:
                    threading.Thread(target=_work, args=(self._calls,), name="pqkv-worker", daemon=True).start()
                except RuntimeError:  # no more threads here, or the interpreter ends: the caller does what they would
                    return
                self._count += 1


def _work(calls: SimpleQueue[_Call]) -> None:
    while True:
        call = calls.get()
        call.take_part()
        del call


class _Pool:
    """The workers of this process: a fork has none of its parent's threads."""

    def __init__(self) -> None:
        self.workers = _Workers()
        if hasattr(os, "register_at_fork"):  # where there are forks
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self.workers = _Workers()


_POOL = _Pool()


def run_units(function: Callable[..., None], units: int, microseconds: float, *arguments: object) -> None:
    """Call `function(taken, *arguments)` on torch's number of threads, as it is set now, this one among them.

    `taken` is an int64 array (1,) that counts the units of work that were begun; the function takes its next one by
    `vector_code.next_unit(taken)` until that is not below their number, and must be compiled with `nogil`. With fewer
    than two units, or with so little to do in all (`microseconds` on one thread, an estimate) that no second thread
    would gain, it runs here alone. Returns when all units are done; raises what any of the threads raised.
    """
    taken = np.zeros(1, np.int64)
    others = min(torch.get_num_threads(), units, int(microseconds / _WORTH)) - 1
    if others < 1:
        function(taken, *arguments)
        return
    call = _Call(lambda: function(taken, *arguments), others)
    try:
        _POOL.workers.give(call, others)
        function(taken, *arguments)
    finally:
        call.finish(others)
