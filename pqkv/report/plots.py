"""Which plots there are, and the lines that records make in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from pqkv.derived import nothing_coded
from pqkv.errors import RecordError
from pqkv.metrics import METRICS
from pqkv.record import Record, atomic_write
from pqkv.report.axes import tokens
from pqkv.report.drawing import draw
from pqkv.report.plot import EXACT, Line, Plot, Point
from pqkv.report.series import Cell, bits_of, cells, codec_name

BY_CONTEXT = (
    "perplexity_ratio", "kld_mean", "agreement_at_1", "recall", "latency_ms", "speedup", "charged_speedup",
    "bandwidth_gbs", "tpot_ms",
)  # fmt: skip
BY_CODE_BITS = ("perplexity_ratio", "kld_mean", "agreement_at_1")
LOGARITHMIC = ("kld_mean", "latency_ms", "speedup", "charged_speedup", "tpot_ms")
FRONT = "beaten by none in bits and KLD"
PLOT_NAMES = (
    *(f"{metric}_by_context" for metric in BY_CONTEXT),
    "kld_mean_by_position",
    *(f"{metric}_by_code_bits" for metric in BY_CODE_BITS),
    "kld_mean_pareto",
)
AT_ONE = ("perplexity_ratio", "speedup", "charged_speedup")  # where coded and exact are equal


def write_plots(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write every plot that has data as PNG and return the paths. A plot that an earlier call left and that has no
    data now is removed: the folder shows these records only.
    """
    written = []
    for plot in plots_of(records):
        path = Path(folder) / f"{plot.name}.png"
        image = draw(plot)
        if image is not None:
            atomic_write(path, image)
            written.append(path)
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"cannot remove the old plot {path}: {error.strerror}") from error
    return written


def plots_of(records: Iterable[Record]) -> list[Plot]:
    """Every plot there is, in the order of `PLOT_NAMES`; one without lines has no data. Cells in which nothing was
    coded are left out: their points would say that codes cost nothing.
    """
    ran = [cell for cell in cells(records) if cell.record.status == "ok" and not nothing_coded(cell.record)]
    return [
        *(_by_context(ran, metric) for metric in BY_CONTEXT),
        _by_position(ran),
        *(_by_code_bits(ran, metric) for metric in BY_CODE_BITS),
        _pareto(ran),
    ]


def _by_context(ran: list[Cell], metric: str) -> Plot:
    points: dict[tuple[str, str, str, str], list[Point]] = defaultdict(list)
    exact: dict[str, dict[float, float]] = defaultdict(dict)
    for cell in ran:
        point = _point(cell, metric, cell.context)
        if point is None:
            continue
        points[cell.group, cell.shape, cell.mode, cell.variant].append(point)
        reference = cell.value(f"{metric}_exact")
        if reference is not None:  # the same for every code shape, so the first cell of a context speaks for all
            exact[cell.group].setdefault(point.x, reference)
    lines = [_line(key, found) for key, found in points.items()]
    for group, values in exact.items():
        lines.append(_line((group, EXACT, "", ""), [Point(x, y) for x, y in values.items()]))
    return Plot(
        name=f"{metric}_by_context",
        title=f"{_capital(METRICS[metric].label)} by context",
        x_label="context (tokens)",
        y_label=_axis_label(metric),
        lines=tuple(lines),
        hue_title="bits per element",
        hues=_shapes(ran),
        log_x=True,
        log_y=metric in LOGARITHMIC,
        x_ticks=tuple(sorted({point.x for line in lines for point in line.points})),
        baseline=1.0 if metric in AT_ONE else None,
    )


def _by_code_bits(ran: list[Cell], metric: str) -> Plot:
    points: dict[tuple[str, int, str, str], list[Point]] = defaultdict(list)
    for cell in ran:
        if codec_name(cell.record.config):  # a line through different ways of coding would say nothing: see pqkv lab
            continue
        point = _point(cell, metric, cell.value("code_bits"))
        if point is not None and cell.context is not None:
            points[cell.group, cell.context, cell.mode, cell.variant].append(point)
    widths: dict[str, set[float]] = defaultdict(set)
    contexts: dict[str, set[int]] = defaultdict(set)
    for (group, context, _, _), found in points.items():
        widths[group] |= {point.x for point in found}
        contexts[group].add(context)
    # One width makes no curve: it would only repeat the plot against context. Of many contexts the two ends are
    # drawn, for those between lie between and would bury them.
    lines = [
        _line((group, tokens(context), mode, variant), found)
        for (group, context, mode, variant), found in points.items()
        if len(widths[group]) > 1 and context in (min(contexts[group]), max(contexts[group]))
    ]
    drawn = sorted({end for group in contexts for end in (min(contexts[group]), max(contexts[group]))})
    return Plot(
        name=f"{metric}_by_code_bits",
        title=f"{_capital(METRICS[metric].label)} by marginal cost",
        x_label="code_bits (bits per element)",
        y_label=_axis_label(metric),
        lines=tuple(lines),
        hue_title="context (tokens)",
        hues=tuple(tokens(context) for context in drawn),
        log_y=metric in LOGARITHMIC,
        x_ticks=tuple(sorted({point.x for line in lines for point in line.points})),
        baseline=1.0 if metric in AT_ONE else None,
    )


def _pareto(ran: list[Cell]) -> Plot:
    """KLD against bits of different ways of coding, a panel for each text, mode and context that has at least two: a
    line through each way's widths, and one through the cells that no other beats in both.
    """
    points: dict[str, dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for cell in ran:
        point = _point(cell, "kld_mean", cell.value("code_bits"))
        if point is not None and cell.context is not None and not cell.record.config.get("floor"):
            panel = f"{cell.group}, {cell.mode}, {tokens(cell.context)} tokens"
            points[panel][_way(cell.record)].append(point)
    lines = []
    for panel, ways in points.items():
        if len(ways) > 1:
            front = _front([point for found in ways.values() for point in found])
            lines.append(_line((panel, FRONT, "", FRONT), front))  # first, so that what it goes through lies on it
            lines += [_line((panel, way, "", ""), found) for way, found in sorted(ways.items())]
    ways_drawn = dict.fromkeys(line.hue for line in lines)
    return Plot(
        name="kld_mean_pareto",
        title="Mean KL divergence of ways of coding by what they take",
        x_label="code_bits (bits per element, measured)",
        y_label=_axis_label("kld_mean"),
        lines=tuple(lines),
        hue_title="way of coding",
        hues=tuple(sorted(ways_drawn, key=lambda way: (way != FRONT, way))),
        log_y=True,
    )


def _way(record: Record) -> str:
    """The names of the codecs of both sides, without options; codebooks are one way."""
    names = [side.partition(":")[0] for side in codec_name(record.config).split("/")]
    return "/".join(dict.fromkeys(names)) if names[0] else "codebooks"


def _front(points: list[Point]) -> list[Point]:
    """Those to which no other is at most equal in both."""
    best: list[Point] = []
    for point in sorted(points, key=lambda point: (point.x, point.y)):
        if not best or point.y < best[-1].y:
            best.append(point)
    return best


def _by_position(ran: list[Cell]) -> Plot:
    """KLD against position, in each panel at the longest context it has: the one with the most positions to show."""
    longest: dict[str, int] = {}
    usable = [(cell, points) for cell in ran if cell.context is not None and (points := _positions(cell.record))]
    for cell, _ in usable:
        longest[cell.group] = max(longest.get(cell.group, 0), cell.context or 0)
    lines = [
        _line((f"{cell.group}, context {tokens(cell.context or 0)}", cell.shape, cell.mode, cell.variant), points)
        for cell, points in usable
        if cell.context == longest[cell.group]
    ]
    return Plot(
        name="kld_mean_by_position",
        title="Mean KL divergence by position",
        x_label="position (tokens, middle of the bucket)",
        y_label=_axis_label("kld_mean"),
        lines=tuple(lines),
        hue_title="bits per element",
        hues=_shapes(ran),
        log_x=True,
        log_y=True,
    )


def _positions(record: Record) -> list[Point]:
    points = []
    for row in record.tables.get("by_position", []):
        start, end, kld = row.get("start"), row.get("end"), row.get("kld_mean")
        if start is not None and end is not None and kld is not None:
            points.append(Point((start + end) / 2, kld, row.get("kld_mean_low"), row.get("kld_mean_high")))
    return points


def _point(cell: Cell, metric: str, x: float | None) -> Point | None:
    found = cell.record.metrics.get(metric)
    if found is None or found.value is None or x is None:
        return None
    return Point(float(x), found.value, found.low, found.high)


def _line(key: tuple[str, str, str, str], points: list[Point]) -> Line:
    panel, hue, marker, dash = key
    return Line(panel, hue, marker, dash, tuple(sorted(points, key=lambda point: (point.x, point.y))))


def _shapes(ran: list[Cell]) -> tuple[str, ...]:
    # Taken from all cells, so that a width keeps its colour in plots where another is missing.
    order = {cell.shape: (-bits_of(cell.record.config), cell.shape) for cell in ran}
    return tuple(sorted(order, key=lambda shape: order[shape]))


def _capital(label: str) -> str:
    return label if label.startswith("KL") else label[0].upper() + label[1:]


def _axis_label(metric: str) -> str:
    info = METRICS[metric]
    unit = f" ({info.unit})" if info.unit else ""
    return f"{info.label}{unit}, {info.direction} is better"
