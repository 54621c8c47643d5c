"""Axes that can be read: ticks where the data is, token counts in K, and no bare powers of ten."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes


ROOM = 14  # labels that a wide x axis holds side by side


def scale_x(axes: Axes, values: list[float], ticks: tuple[float, ...], *, logarithmic: bool, room: int = ROOM) -> None:
    """Scale the x axis by powers of 2 or linearly, with ticks at `ticks` (without any: at powers of 2, or at round
    numbers), of which those are labelled that stand a `room`-th of the axis apart.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = min(values), max(values)
    if logarithmic:
        axes.set_xscale("log", base=2)
        margin = 2 ** max(0.35, 0.06 * math.log2(high / low)) if low > 0 else 2
        axes.set_xlim(low / margin, high * margin)
        axes.xaxis.set_major_locator(FixedLocator(_apart(ticks, room)) if ticks else LogLocator(base=2))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tokens(value)))
    else:
        margin = max(0.3, 0.06 * (high - low))
        axes.set_xlim(low - margin, high + margin)
        axes.xaxis.set_major_locator(FixedLocator(ticks) if ticks else MaxNLocator(min(room, 8)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def scale_y(axes: Axes, *, logarithmic: bool) -> None:
    """Scale the y axis; a logarithmic one gets at least two labelled ticks, however flat the data."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if not logarithmic:
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 5:
        middle = math.sqrt(low * high)
        low, high = middle / math.sqrt(5), middle * math.sqrt(5)
        axes.set_ylim(low, high)
    decades = math.log10(high / low)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if decades < 3 else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def tokens(count: float) -> str:
    """A number of tokens as people write it: 512, 2K, 128K."""
    if count >= 1024 and count % 1024 == 0:
        return f"{count / 1024:.0f}K"
    return f"{count:g}"


def _apart(ticks: tuple[float, ...], room: int) -> list[float]:
    """The ticks whose labels do not run into the one before."""
    kept: list[float] = []
    span = math.log2(ticks[-1] / ticks[0]) if len(ticks) > 1 else 0
    for tick in ticks:
        if not kept or math.log2(tick / kept[-1]) >= max(0.2, span / room):
            kept.append(tick)
    return kept
