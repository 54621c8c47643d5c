"""Timing on a machine that is never quiet: cold caches, contestants in turn, medians with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pqkv.speed.clock import Call, stopwatch

_CPU = torch.device("cpu")
_SELDOM = 5  # who decides nothing runs in one round of so many
_CACHE_BYTES = 64 << 20  # taken for the last-level cache where the machine does not tell


@dataclass(frozen=True, slots=True)
class Contestant:
    """One thing to time, as calls that do the same on different buffers: taken in turn, none finds its own in cache.
    `capture`: whether a GPU may replay the calls as a graph; not those that wait for the device.
    """

    name: str
    calls: Sequence[Call]
    capture: bool = True


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of every run of a contestant, in order."""

    name: str
    seconds: tuple[float, ...]
    captured: bool = False  # replayed by the device as one graph, so without the time of launches

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
    contestants: Sequence[Contestant],
    repeats: int,
    slow: float = 8.0,
    always: Sequence[str] = (),
    device: torch.device = _CPU,
) -> dict[str, Timing]:
    """Time all contestants `repeats` times, one after another in each round, so that what disturbs one disturbs all.

    A first, untimed round warms up (compilation, allocation). Whoever is `slow` times slower there than the fastest of
    those not named in `always` runs in every fifth round only: it decides nothing. Those in `always` run in every one.
    """
    clocks = {c.name: stopwatch(device, c.calls, capture=c.capture) for c in contestants}
    warm = {name: clock.seconds() for name, clock in clocks.items()}
    warm = {name: min(warm[name], clock.seconds()) for name, clock in clocks.items()}
    fastest = min((found for name, found in warm.items() if name not in always), default=math.inf)
    seconds: dict[str, list[float]] = {c.name: [] for c in contestants}
    for i in range(repeats):
        for c in contestants:
            if warm[c.name] <= slow * fastest or c.name in always or i % _SELDOM == 0:
                seconds[c.name].append(clocks[c.name].seconds())
    return {name: Timing(name, tuple(found), clocks[name].captured) for name, found in seconds.items()}


def ratios(theirs: Timing, own: Timing) -> list[float]:
    """Their seconds over ours, ours of every round of one `race`, in the rounds that both ran."""
    both = own.seconds if len(theirs.seconds) == len(own.seconds) else own.seconds[::_SELDOM]
    return [a / b for a, b in zip(theirs.seconds, both, strict=True)]


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


def copies_beyond_cache(nbytes: int, device: torch.device = _CPU) -> int:
    """How many buffers of `nbytes` together are twice the last-level cache."""
    return max(1, -(-2 * last_level_cache(device) // max(1, nbytes)))


def last_level_cache(device: torch.device = _CPU) -> int:
    """Bytes of a GPU's L2, or of the largest cache the processor tells of."""
    if device.type == "cuda":
        size: int = torch.cuda.get_device_properties(device).L2_cache_size
        return size
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]] if text[-1] in "KMG" else int(text))
    return max(sizes) or _CACHE_BYTES


def copy_bandwidth(repeats: int = 7, device: torch.device = _CPU) -> float:
    """GB/s (decimal, bytes read plus bytes written) of copying a buffer of four times the last-level cache."""
    size = 4 * last_level_cache(device)
    # a GPU reaches its bandwidth on far larger buffers only
    source = torch.ones(max(size, 1 << 30) if device.type == "cuda" else size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = race([Contestant("copy", [lambda: target.copy_(source)])], repeats, device=device)["copy"]
    return 2 * source.numel() / (times.median * 1e-3) / 1e9
