"""A plot as data, and the one function that turns it into a PNG."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pqkv.report.axes import scale_x, scale_y
from pqkv.report.series import natural

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DPI = 144
EXACT = "exact cache"  # the hue of a line that is a reference, not a result
# Okabe and Ito's palette, told apart with every common colour blindness; without yellow, which white swallows, and
# with two of Tol's for long lists.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
GREY = "0.45"


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


def draw(plot: Plot) -> bytes | None:
    """The picture as PNG, the same bytes for the same plot; None when there is nothing to show."""
    visible = [line for line in plot.lines if any(_shown(plot, point) for point in line.points)]
    panels = list(dict.fromkeys(line.panel for line in visible))
    if not panels:
        return None
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's must not change the picture
        columns = min(2, len(panels))
        rows = math.ceil(len(panels) / columns)
        size = (5.4 * columns + 2.4, 3.9 * rows + 0.4)
        figure = Figure(figsize=size, dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08))
        FigureCanvasAgg(figure)
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(rows, columns, index + 1)
            _draw_panel(plot, panel, axes)
        figure.suptitle(plot.title, fontsize=12)
        _legend(plot, visible, figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _draw_panel(plot: Plot, panel: str, axes: Axes) -> None:
    lines = [line for line in plot.lines if line.panel == panel]
    hidden = sum(not _shown(plot, point) for line in lines for point in line.points)
    for index, line in enumerate(lines):
        shown = [point for point in line.points if _shown(plot, point)]
        colour, marker, dash = _look(plot, line)
        xs = [point.x for point in shown]
        if line.hue != EXACT:
            xs = [_aside(x, index - (len(lines) - 1) / 2, len(lines), plot) for x in xs]
        axes.plot(xs, [point.y for point in shown], color=colour, marker=marker, linestyle=dash, linewidth=1.5, ms=5)
        for x, point in zip(xs, shown, strict=True):
            _draw_interval(axes, x, point, colour, plot)
    if plot.baseline is not None:
        axes.axhline(plot.baseline, color=GREY, linestyle="--", linewidth=1, zorder=1.5)
    axes.set_title(_short(panel, 60), fontsize=10)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    scale_x(axes, [point.x for line in lines for point in line.points], plot.x_ticks, logarithmic=plot.log_x)
    scale_y(axes, logarithmic=plot.log_y)
    if hidden:
        axes.annotate(
            f"{hidden} point{'s' if hidden > 1 else ''} at 0 not shown", (0.99, 0.01), xycoords="axes fraction",
            ha="right", va="bottom", fontsize=8, color=GREY,
        )  # fmt: skip


def _draw_interval(axes: Axes, x: float, point: Point, colour: str, plot: Plot) -> None:
    if point.low is None or point.high is None:
        return
    # On a logarithmic axis an interval that reaches 0 has no lower end; it is drawn a decade down.
    low = point.low if point.low > 0 or not plot.log_y else point.y / 10
    below, above = max(0.0, point.y - low), max(0.0, point.high - point.y)
    axes.errorbar([x], [point.y], yerr=[[below], [above]], fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)


def _shown(plot: Plot, point: Point) -> bool:
    return (point.y > 0 or not plot.log_y) and (point.x > 0 or not plot.log_x)


def _aside(x: float, place: float, count: int, plot: Plot) -> float:
    """`x` moved a little, so that the intervals of lines that meet at it stand side by side."""
    step = min(0.05, 0.3 / count)  # the fan of all lines stays within a third of an octave
    if plot.log_x:
        return float(x * 2 ** (place * step)) if plot.x_ticks else x
    return x + place * step


def _look(plot: Plot, line: Line) -> tuple[str, str, Any]:
    if line.hue == EXACT:
        return GREY, "", "--"
    markers, dashes = _kinds(plot, "marker"), _kinds(plot, "dash")
    return (
        PALETTE[plot.hues.index(line.hue) % len(PALETTE)],
        MARKERS[markers.index(line.marker) % len(MARKERS)],
        DASHES[dashes.index(line.dash) % len(DASHES)],
    )


def _kinds(plot: Plot, attribute: str) -> list[str]:
    """The distinct markers or dashes of a plot, in the order that gives them their looks."""
    return sorted({getattr(line, attribute) for line in plot.lines if line.hue != EXACT}, key=natural)


def _short(text: str, length: int) -> str:
    """The ends of a text too long to print, such as a path: those tell more than its middle."""
    half = (length - 5) // 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def _legend(plot: Plot, visible: list[Line], figure: Figure) -> None:
    """What colours, markers and dashes mean: shorter than one entry a line, and beside the data instead of on it."""
    from matplotlib.lines import Line2D

    present = {line.hue for line in visible}

    def title(text: str) -> Line2D:
        return Line2D([], [], linestyle="", label=text)

    handles = [title(plot.hue_title)]
    for index, hue in enumerate(plot.hues):
        if hue in present:
            handles.append(Line2D([], [], color=PALETTE[index % len(PALETTE)], linewidth=2.5, label=hue))
    if EXACT in present or plot.baseline is not None:
        handles.append(Line2D([], [], color=GREY, linestyle="--", label=EXACT))
    for heading, attribute in (("mode", "marker"), ("variant", "dash")):
        examples = {getattr(line, attribute): line for line in visible if line.hue != EXACT}
        kinds = [kind for kind in _kinds(plot, attribute) if kind and kind in examples]
        if kinds:
            handles.append(title(heading))
        for kind in kinds:
            _, marker, dash = _look(plot, examples[kind])
            handles.append(
                Line2D([], [], color="0.2", marker=marker, linestyle="", label=kind)
                if attribute == "marker"
                else Line2D([], [], color="0.2", linestyle=dash, label=_wrapped(kind))
            )
    legend = figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    for text in legend.get_texts():
        if text.get_text() in (plot.hue_title, "mode", "variant"):
            text.set_fontweight("bold")


def _wrapped(variant: str) -> str:
    return ",\n".join(_short(part, 32) for part in variant.split(", "))
