"""Timing on a machine that is never quiet: cold caches, contestants in turn, medians with intervals."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

Call = Callable[[], object]
_CACHE_BYTES = 64 << 20  # taken for the last-level cache where the machine does not tell


@dataclass(frozen=True, slots=True)
class Contestant:
    """One thing to time, as calls that do the same on different buffers: taken in turn, none finds its own in cache."""

    name: str
    calls: Sequence[Call]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every run of a contestant, in order."""

    name: str
    seconds: tuple[float, ...]

    def quantile(self, q: float) -> float:
        """The q-quantile in milliseconds, by linear interpolation."""
        ordered = sorted(self.seconds)
        place = q * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return 1e3 * (ordered[low] + (place - low) * (ordered[high] - ordered[low]))

    @property
    def median(self) -> float:
        """Median in milliseconds."""
        return self.quantile(0.5)


def race(
    contestants: Sequence[Contestant], repeats: int, slow: float = 8.0, always: Sequence[str] = ()
) -> dict[str, Timing]:
    """Time all contestants `repeats` times, one after another in each round, so that what disturbs one disturbs all.

    A first, untimed round warms up (compilation, allocation). Whoever is `slow` times slower there than the fastest of
    those not named in `always` runs in every fifth round only: it decides nothing. Those in `always` run in every one.
    """
    warm = {c.name: _clock(c.calls[-1]) for c in contestants}
    warm = {c.name: min(warm[c.name], _clock(c.calls[0])) for c in contestants}
    fastest = min((found for name, found in warm.items() if name not in always), default=math.inf)
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    for i in range(repeats):
        for c in contestants:
            if warm[c.name] <= slow * fastest or c.name in always or i % 5 == 0:
                seconds[c.name].append(_clock(c.calls[i % len(c.calls)]))
    return {name: Timing(name, tuple(found)) for name, found in seconds.items()}


def median_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95% interval of the median from order statistics: no distribution is assumed. None for fewer than 6 values."""
    n = len(values)
    tail, below = 0.0, -1
    while True:  # the largest k with P(Binomial(n, 1/2) <= k) <= 2.5%
        tail += math.comb(n, below + 1) / 2**n
        if tail > 0.025:
            break
        below += 1
    if below < 0:
        return None, None
    ordered = sorted(values)
    return ordered[below], ordered[n - 1 - below]


def copies_beyond_cache(nbytes: int) -> int:
    """How many buffers of `nbytes` together are twice the last-level cache."""
    return max(1, -(-2 * last_level_cache() // max(1, nbytes)))


def last_level_cache() -> int:
    """Bytes of the largest cache the processor tells of."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]] if text[-1] in "KMG" else int(text))
    return max(sizes) or _CACHE_BYTES


def copy_bandwidth(repeats: int = 7) -> float:
    """GB/s (decimal, bytes read plus bytes written) of copying a buffer of four times the last-level cache."""
    source = torch.ones(4 * last_level_cache(), dtype=torch.uint8)
    target = torch.empty_like(source)
    times = race([Contestant("copy", [lambda: target.copy_(source)])], repeats)["copy"]
    return 2 * source.numel() / (times.median * 1e-3) / 1e9


def _clock(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
