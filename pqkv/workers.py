"""Python threads that sleep until a call has a part for them: where OpenMP's threads cannot be had."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue


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


def share(run: Callable[[], None], others: int) -> None:
    """Call `run` on this thread and at the same time on up to `others` more; raises what any of them raised. A thread
    that has not begun when this one is done is not waited for.
    """
    call = _Call(run, others)
    try:
        _POOL.workers.give(call, others)
        run()
    finally:
        call.finish(others)
