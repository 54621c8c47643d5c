"""What colours, markers and dashes a plot's lines have, and the legend that says what they mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pqkv.report.plot import EXACT, Line, Plot
from pqkv.report.series import natural

# Okabe and Ito's palette, told apart with every common colour blindness; without yellow, which white swallows, and
# with five of Tol's for long lists.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#999933", "#332288",
    "#44AA99", "#661100",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
GREY = "0.45"


@dataclass(frozen=True, slots=True)
class Sample:
    """One entry of a legend; no colour where only the marker or the dash counts, no dash for a marker alone."""

    label: str
    colour: str | None = None
    marker: str = ""
    dash: Any = None


@dataclass(frozen=True, slots=True)
class LegendGroup:
    """Entries under the heading that says what they tell apart."""

    title: str
    samples: tuple[Sample, ...]


def look(plot: Plot, line: Line) -> tuple[str, str, Any]:
    """Colour, marker and dash of a line, the same in every panel."""
    if line.hue == EXACT:
        return GREY, "", "--"
    markers, dashes = _kinds(plot, "marker"), _kinds(plot, "dash")
    return (
        PALETTE[plot.hues.index(line.hue) % len(PALETTE)],
        MARKERS[markers.index(line.marker) % len(MARKERS)],
        DASHES[dashes.index(line.dash) % len(DASHES)],
    )


def legend(plot: Plot, visible: list[Line]) -> list[LegendGroup]:
    """What the colours, markers and dashes of the visible lines mean: shorter than one entry a line."""
    present = {line.hue for line in visible}
    hues = [
        Sample(hue, colour=PALETTE[index % len(PALETTE)], dash="-")
        for index, hue in enumerate(plot.hues)
        if hue in present
    ]
    if EXACT in present or plot.baseline is not None:
        hues.append(Sample(EXACT, colour=GREY, dash="--"))
    groups = [LegendGroup(plot.hue_title, tuple(hues))]
    for title, attribute in (("mode", "marker"), ("variant", "dash")):
        examples = {getattr(line, attribute): line for line in visible if line.hue != EXACT}
        samples = []
        for kind in _kinds(plot, attribute):
            if kind in examples and kind not in ("", *plot.hues):  # a dash that goes with one colour needs no entry
                _, marker, dash = look(plot, examples[kind])
                samples.append(Sample(kind, marker=marker) if attribute == "marker" else Sample(kind, dash=dash))
        if samples:
            groups.append(LegendGroup(title, tuple(samples)))
    return groups


def _kinds(plot: Plot, attribute: str) -> list[str]:
    """The distinct markers or dashes of a plot, in the order that gives them their looks."""
    return sorted({getattr(line, attribute) for line in plot.lines if line.hue != EXACT}, key=natural)
