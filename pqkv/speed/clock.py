"""How long a call takes: by the wall on a CPU, by the device's own events on a GPU.

A launch from Python takes longer than many a kernel runs. So on a GPU all calls of a contestant are captured into one
CUDA graph, which the device replays without Python, and the time of a replay is divided by its calls. Calls that cannot
be captured (they wait for the device, as backends do that look at numbers on the host) are timed as they are, launches
included; `Stopwatch.captured` says which it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from pqkv.errors import KernelError

Call = Callable[[], object]
_FEWEST = 4  # calls of a graph: the time between two events holds a few microseconds that are nobody's


class Stopwatch(Protocol):
    """Times one contestant, run after run."""

    captured: bool

    def seconds(self) -> float:
        """Of one call, run now."""
        ...


class WallClock:
    """One call at a time, the next of its buffers each time. Each has run once before: what a cache derives in its
    first step (tables of bytes, addresses) is there in every later one, and only what the buffers hold is cold.
    """

    captured = False

    def __init__(self, calls: Sequence[Call]) -> None:
        self._calls, self._next = calls, 0
        for call in calls:
            call()

    def seconds(self) -> float:
        """See `Stopwatch`."""
        call = self._calls[self._next % len(self._calls)]
        self._next += 1
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


class DeviceClock:
    """All calls in one graph, or launched one after another, between two events of the device.

    `device` has what is used of `torch.cuda`: synchronize, CUDAGraph, graph, Stream, stream, Event. With `capture` off
    nothing is tried: a capture that fails half way leaves torch's allocator in the state of a capture.
    """

    def __init__(
        self,
        calls: Sequence[Call],
        device: Any = torch.cuda,  # noqa: ANN401 - a module
        *,
        capture: bool = True,
    ) -> None:
        self._calls, self._device = list(calls) * -(-_FEWEST // len(calls)), device
        for call in calls:  # compilation, allocation and choices of algorithms happen outside of a capture
            call()
        device.synchronize()
        self._graph: torch.cuda.CUDAGraph | None = device.CUDAGraph() if capture else None
        if self._graph is not None:
            side = device.Stream()
            try:
                # the outer one puts the stream back, even where ending the capture raises
                with device.stream(side), device.graph(self._graph, stream=side):
                    for call in self._calls:
                        call()
            except (RuntimeError, KernelError):
                device.synchronize()
                self._graph = None
        self.captured = self._graph is not None

    def seconds(self) -> float:
        """See `Stopwatch`."""
        start, end = (self._device.Event(enable_timing=True) for _ in range(2))
        start.record()
        if self._graph is not None:
            self._graph.replay()
        else:
            for call in self._calls:
                call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / len(self._calls)


def stopwatch(device: torch.device, calls: Sequence[Call], *, capture: bool = True) -> Stopwatch:
    """The one that suits the device."""
    return DeviceClock(calls, capture=capture) if device.type == "cuda" else WallClock(calls)
