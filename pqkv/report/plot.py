"""A plot as data: what any picture of it, PNG or SVG, shows."""

from __future__ import annotations

from dataclasses import dataclass

EXACT = "exact cache"  # the hue of a line that is a reference, not a result


@dataclass(frozen=True, slots=True)
class Point:
    """A figure with its interval."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """Points to join: `hue` gives the colour, `marker` the mode, `dash` the variant, `panel` the axes it lies in."""

    panel: str
    hue: str
    marker: str
    dash: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """Everything a picture shows. `hues` lists all colours there are, so that a hue looks alike in every plot."""

    name: str
    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    hue_title: str
    hues: tuple[str, ...]
    log_x: bool = False
    log_y: bool = False
    x_ticks: tuple[float, ...] = ()
    baseline: float | None = None


def shown(plot: Plot, point: Point) -> bool:
    """Whether a point has a place on the plot's axes: a logarithmic one has none for zero."""
    return (point.y > 0 or not plot.log_y) and (point.x > 0 or not plot.log_x)


def visible_lines(plot: Plot) -> list[Line]:
    """The lines of which at least one point can be shown."""
    return [line for line in plot.lines if any(shown(plot, point) for point in line.points)]
