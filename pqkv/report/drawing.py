"""A plot as PNG, all panels in one picture; and how one panel is drawn, which the SVG of the page shares."""

from __future__ import annotations

import io
import math
import textwrap
from typing import TYPE_CHECKING

from pqkv.report.axes import ROOM, scale_x, scale_y
from pqkv.report.looks import GREY, legend, look
from pqkv.report.plot import EXACT, Line, Plot, Point, shown, visible_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 144
_FOLD = 34  # characters of a line of the legend


def draw(plot: Plot) -> bytes | None:
    """The picture as PNG, the same bytes for the same plot; None when there is nothing to show."""
    visible = visible_lines(plot)
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
            draw_panel(plot, panel, axes)
            axes.set_title(_short(panel, 60), fontsize=10)
            axes.set_xlabel(plot.x_label)
            axes.set_ylabel(plot.y_label)
        figure.suptitle(plot.title, fontsize=12)
        _legend(plot, visible, figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def draw_panel(plot: Plot, panel: str, axes: Axes, *, room: int = ROOM, note_size: float = 8) -> None:
    """Draw the lines of `panel` with their intervals, grid and ticks. The caller gives title and labels.

    `room` is how many labels the x axis holds side by side, `note_size` the font size of the note on what is not shown.
    """
    lines = [line for line in plot.lines if line.panel == panel]
    hidden = sum(not shown(plot, point) for line in lines for point in line.points)
    for index, line in enumerate(lines):
        drawn = [point for point in line.points if shown(plot, point)]
        colour, marker, dash = look(plot, line)
        xs = [point.x for point in drawn]
        if line.hue != EXACT:
            xs = [_aside(x, index - (len(lines) - 1) / 2, len(lines), plot) for x in xs]
        axes.plot(xs, [point.y for point in drawn], color=colour, marker=marker, linestyle=dash, linewidth=1.5, ms=5)
        for x, point in zip(xs, drawn, strict=True):
            _draw_interval(axes, x, point, colour, plot)
    if plot.baseline is not None:
        axes.axhline(plot.baseline, color=GREY, linestyle="--", linewidth=1, zorder=1.5)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    scale_x(axes, [point.x for line in lines for point in line.points], plot.x_ticks, logarithmic=plot.log_x, room=room)
    scale_y(axes, logarithmic=plot.log_y)
    if hidden:
        axes.annotate(
            f"{hidden} point{'s' if hidden > 1 else ''} at 0 not shown", (0.99, 0.01), xycoords="axes fraction",
            ha="right", va="bottom", fontsize=note_size, color=GREY,
        )  # fmt: skip


def _draw_interval(axes: Axes, x: float, point: Point, colour: str, plot: Plot) -> None:
    if point.low is None or point.high is None:
        return
    # On a logarithmic axis an interval that reaches 0 has no lower end; it is drawn a decade down.
    low = point.low if point.low > 0 or not plot.log_y else point.y / 10
    below, above = max(0.0, point.y - low), max(0.0, point.high - point.y)
    axes.errorbar([x], [point.y], yerr=[[below], [above]], fmt="none", ecolor=colour, elinewidth=1.2, capsize=3)


def _aside(x: float, place: float, count: int, plot: Plot) -> float:
    """`x` moved a little, so that the intervals of lines that meet at it stand side by side; where there are no ticks
    that many share, x is a measured figure and stays what it is.
    """
    step = min(0.05, 0.3 / count)  # the fan of all lines stays within a third of an octave
    if not plot.x_ticks:
        return x
    return float(x * 2 ** (place * step)) if plot.log_x else x + place * step


def _short(text: str, length: int) -> str:
    """The ends of a text too long to print, such as a path: those tell more than its middle."""
    half = (length - 5) // 2
    return text if len(text) <= length else f"{text[:half]} ... {text[-half:]}"


def _legend(plot: Plot, visible: list[Line], figure: Figure) -> None:
    """The legend beside the data instead of on it."""
    from matplotlib.lines import Line2D

    handles = []
    groups = legend(plot, visible)
    for index, group in enumerate(groups):
        handles.append(Line2D([], [], linestyle="", label=group.title))
        for sample in group.samples:
            if sample.marker:
                handles.append(Line2D([], [], color="0.2", marker=sample.marker, linestyle="", label=sample.label))
            elif index:
                handles.append(Line2D([], [], color="0.2", linestyle=sample.dash, label=_wrapped(sample.label)))
            elif sample.label == EXACT:
                handles.append(Line2D([], [], color=GREY, linestyle="--", label=EXACT))
            else:
                handles.append(Line2D([], [], color=sample.colour, linewidth=2.5, label=_folded(sample.label)))
    drawn = figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    for text in drawn.get_texts():
        if text.get_text() in (plot.hue_title, "mode", "variant"):
            text.set_fontweight("bold")


def _folded(name: str) -> str:
    """The name of a codec with all its options, on lines that leave room for the picture."""
    return name if len(name) <= _FOLD else textwrap.fill(name.replace(",", ", ").replace("/", " / "), _FOLD)


def _wrapped(variant: str) -> str:
    return ",\n".join(_short(part, 32) for part in variant.split(", "))
