"""Progress in lines, for a log or a pipe: which stage, how far, how fast, how long it will still take."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from math import ceil

INTERVAL = 5.0  # seconds between lines
_RECENT = 30.0  # seconds that a pace is taken over: what was slow only at first is forgotten
_INSTANT = 0.5  # seconds within which units count as one step


class StageLines:
    """Says each stage as it begins, then every `interval` seconds how far it is, and at last how long a long one took.

    `show` and `tick` may be called as often as one likes and from several threads; `clock` gives seconds.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        interval: float = INTERVAL,
    ) -> None:
        self._write, self._clock, self._interval = write, clock, interval
        self._lock = threading.Lock()
        self._stage: str | None = None
        self._total = 0
        self._began = self._said = 0.0
        self._pace = Pace(0, 0.0)

    def show(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` units of `stage`."""
        with self._lock:
            now = self._clock()
            changed = stage != self._stage
            if changed:
                self._finish(now)
                self._stage, self._began, self._said = stage, now, now
                self._write(stage)
            # cells of a grid are stages of their own that count on: the pace is then that of the grid
            counts_on = total == self._total and done >= self._pace.done
            if not counts_on or (changed and done == self._pace.start):
                self._total, self._pace = total, Pace(done, now)
            self._pace.reached(done, now)
            self._tell(now)

    def tick(self) -> None:
        """Say how far the stage is if the last line is old enough, also when nothing was heard since."""
        with self._lock:
            self._tell(self._clock())

    def close(self, *, finished: bool = True) -> None:
        """End the last stage; if it `finished`, say how long a long one took."""
        with self._lock:
            if finished:
                self._finish(self._clock())
            self._stage = None

    def _tell(self, now: float) -> None:
        if self._stage is None or now - self._said < self._interval:
            return
        self._said = now
        so_far = f"{duration(now - self._began)} so far"
        if self._total <= 1:
            self._write(f"{self._stage}: {so_far}")
            return
        each = self._pace.each(now)
        estimate = so_far
        if each is not None and self._pace.done < self._total:
            estimate = f"{rate(each)}, {duration(self._pace.left(self._total, now))} left"
        self._write(f"{self._stage}: {self._pace.done} of {self._total} ({estimate})")

    def _finish(self, now: float) -> None:
        if self._stage is not None and now - self._began >= self._interval:
            self._write(f"{self._stage}: took {duration(now - self._began)}")


class Pace:
    """Seconds per unit, of those done lately; `start` units were done before the count began at `now` seconds."""

    def __init__(self, start: int, now: float) -> None:
        self.start = start
        self._step = 1  # units that came at once, last time: a batch of tokens, as a rule
        self._marks = deque([(start, now)])

    @property
    def done(self) -> int:
        """Units done by now."""
        return self._marks[-1][0]

    def reached(self, done: int, now: float) -> None:
        """`done` units are done by `now`."""
        marks = self._marks
        if done <= self.done:
            return
        self._step = done - self.done
        if len(marks) > 1 and now - marks[-2][1] < _INSTANT:
            marks.pop()
        marks.append((done, now))
        while len(marks) > 2 and now - marks[1][1] > _RECENT:
            marks.popleft()

    def each(self, now: float) -> float | None:
        """Seconds a unit takes, at least what the step under way has taken for each of its own; None before any."""
        (first, since), (done, reached) = self._marks[0], self._marks[-1]
        return None if done == first else max((reached - since) / (done - first), (now - reached) / self._step)

    def left(self, total: int, now: float) -> float:
        """Seconds until `total` units are done; 0 before one is done."""
        waited = now - self._marks[-1][1]
        return max((total - self.done) * (self.each(now) or 0.0) - waited, 0.0)


def rate(each: float) -> str:
    """`each` seconds a unit as units a second, or as seconds where those are long."""
    if each >= 10:
        return f"{duration(each)} each"
    return f"{1 / each:.2g}/s" if each > 0.02 else f"{1 / max(each, 1e-6):,.0f}/s"


def duration(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 5 min`: rounded up, so what is not over never has 0 s to go."""
    whole = max(1, ceil(seconds))
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
