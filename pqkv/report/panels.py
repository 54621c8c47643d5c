"""The panels of a plot as SVG for the page: drawn at the size they are read at, in light and dark.

Every panel is a picture of its own, so that a narrow screen can put them below each other, and the page sets titles
and legend, so that they are text. Colours are variables inside the SVG, which knows the reader's colour scheme.
"""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass

from pqkv.report.drawing import draw_panel
from pqkv.report.looks import PALETTE
from pqkv.report.plot import Plot, Point, shown, visible_lines

WIDTH, HEIGHT = 400, 290
FONT_SIZE = 14  # at WIDTH; the page shows a panel no narrower than 320, where it is 11.2
_ROOM = 7
_INK, _GRID, _GREY = "#000000", "#e6e6e6", "#737373"  # the greys are matplotlib's 0.9 and 0.45
# The light half is what the PNG has; the dark half keeps the hues and raises them from the ground.
_LIGHT = dict(zip(PALETTE, PALETTE, strict=True)) | {_INK: "#1f2421", _GRID: "#e2e3dd", _GREY: "#6c706b"}
_RAISED = (
    "#5AA9E6", "#F28B4B", "#35C79C", "#DD9CC3", "#F0B541", "#9BD8F8", "#E4E6E1", "#D46B92", "#C3C35E", "#9A8CF0",
    "#8ADFD0", "#C98B6B",
)  # fmt: skip
_DARK = dict(zip(PALETTE, _RAISED, strict=True)) | {_INK: "#e4e6e1", _GRID: "#363a37", _GREY: "#9ea39c"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: what it shows, as a data URI, and in words for whom cannot see it."""

    name: str
    uri: str
    alt: str


def panels(plot: Plot) -> list[Panel]:
    """The panels of `plot` that show something, the same bytes for the same plot."""
    names = dict.fromkeys(line.panel for line in visible_lines(plot))
    return [Panel(name, data_uri(_svg(plot, name), "image/svg+xml"), _alt(plot, name)) for name in names]


def data_uri(data: bytes, media_type: str) -> str:
    """`data` as an address that holds it."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def colour_variable(colour: str) -> str:
    """The name of the variable that stands for a colour of the palette, or for a grey."""
    known = [*(entry.lower() for entry in PALETTE), _GRID, _GREY]
    return f"--c{known.index(_GREY if colour.startswith('0.') else colour.lower())}"


def colour_rules(scheme: str) -> str:
    """The variables' values in the `light` or `dark` colour scheme."""
    values = _DARK if scheme == "dark" else _LIGHT
    return "".join(f"{colour_variable(colour)}:{value.lower()};" for colour, value in values.items())


def _svg(plot: Plot, name: str) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's must not change the picture
        # Text stays text, in a narrower font than it is laid out for: no label can be cut.
        mpl.rcParams.update({"font.size": FONT_SIZE, "svg.fonttype": "none", "svg.hashsalt": "pqkv"})
        size = (WIDTH / 72, HEIGHT / 72)  # a unit of the SVG is a pixel of the page
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03))
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        axes = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw_panel(plot, name, axes, room=_ROOM, note_size=FONT_SIZE)
        axes.set_xlabel(plot.x_label)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _themed(buffer.getvalue().decode()).encode()


def _themed(svg: str) -> str:
    """The SVG with variables for colours, and fonts that every machine has."""
    for colour in (*PALETTE, _GRID, _GREY):
        svg = re.sub(rf"{colour}\b", f"var({colour_variable(colour)})", svg, flags=re.IGNORECASE)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, 'Helvetica Neue', Arial, sans-serif", svg)
    svg = re.sub(r"fill: #[0-9a-f]{6}", "fill: none", svg)  # of the ends of bars, which have no area
    style = (
        f"svg{{{colour_rules('light')}}}"
        f"@media (prefers-color-scheme:dark){{svg{{{colour_rules('dark')}}}}}"
        f"text{{fill:var({colour_variable(_INK)})}}"
    )
    return svg.replace("<defs>", f"<defs>\n  <style>{style}</style>", 1)


def _alt(plot: Plot, name: str) -> str:
    lines = [line for line in visible_lines(plot) if line.panel == name]
    points = [point for line in lines for point in line.points if shown(plot, point)]
    low, high = (f"{_y(pick(points, key=_y)):.3g}" for pick in (min, max))
    count = f"{len(lines)} line{'' if len(lines) == 1 else 's'}"
    return f"{plot.title}, {name}: {count}, from {low} to {high}. The figures are in the table."


def _y(point: Point) -> float:
    return point.y
