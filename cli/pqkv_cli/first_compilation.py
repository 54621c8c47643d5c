"""A line for those who meet a kernel first: it is compiled now, which takes seconds, and kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_WORTH_SAYING = 3.0  # seconds of compilation
_SAID = "kernels are compiled for this shape, once: they are kept for the next time"


@contextmanager
def first_compilation(say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Iterator[None]:
    """Within it, `say` so once if Numba compiles for some seconds; code that it has kept is not compiled."""
    from numba.core.event import Event, Listener, install_listener

    class Watch(Listener):  # type: ignore[misc]  # of a library without types
        """Adds up what the outermost compilations took; those within them are a chance to speak."""

        def __init__(self) -> None:
            self.depth, self.took, self.since, self.told = 0, 0.0, 0.0, False

        def on_start(self, event: Event) -> None:
            if self.depth == 0:
                self.since = clock()
            self.depth += 1
            self._tell()

        def on_end(self, event: Event) -> None:
            self._tell()
            self.depth -= 1
            if self.depth == 0:
                self.took += clock() - self.since

        def _tell(self) -> None:
            if not self.told and self.took + clock() - self.since >= _WORTH_SAYING:
                self.told = True
                say(_SAID)

    watch: Any = Watch()
    with install_listener("numba:compile", watch):
        yield
