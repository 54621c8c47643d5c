"""The picture of a lab: what every method loses against what it takes, and which of them nothing beats."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from pqkv.lab.outcome import Group, Row
from pqkv.record import atomic_write
from pqkv.report.looks import GREY, PALETTE

_WIDEST = 10.0  # bits: what takes more is an exact side, and stands outside


def write_pareto(
    found: Sequence[Group],
    folder: Path,
    *,
    floors: dict[str, float] | None = None,
    bound: dict[float, float] | None = None,
) -> list[Path]:
    """`pareto-TEXT-CONTEXT-EXACT.png` for each group of at least two methods. `floors` are noise floors by name of the
    group, in nats; `bound` is KLD by bits, a model and drawn as one.
    """
    paths = []
    for group in found:
        rows = [row for row in group.rows if row.value("code_bits") <= _WIDEST and row.value("kld_mean") > 0]
        if len(rows) > 1:
            paths.append(folder / f"pareto-{group.name}.png")
            atomic_write(paths[-1], _draw(group, rows, (floors or {}).get(group.name), bound))
    return paths


def _draw(group: Group, rows: Sequence[Row], floor: float | None, bound: dict[float, float] | None) -> bytes:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(9, 6), dpi=144, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        best = {row.method for row in group.best()}
        for row in rows:
            x, y, kld = row.value("code_bits"), row.value("kld_mean"), row.kld
            colour = PALETTE[0] if row.method in best else GREY
            if kld.low is not None and kld.high is not None:
                axes.errorbar([x], [y], yerr=[[y - max(kld.low, y / 10)], [kld.high - y]], fmt="none", ecolor=colour)
            axes.plot([x], [y], "o" if row.method in best else "s", color=colour, ms=5)
            axes.annotate(row.method, (x, y), xytext=(4, 3), textcoords="offset points", fontsize=7, color=colour)
        front = [row for row in group.best() if row in rows]
        axes.plot([r.value("code_bits") for r in front], [r.value("kld_mean") for r in front], color=PALETTE[0], lw=1)
        if floor:
            axes.axhline(floor, color=PALETTE[1], ls="--", lw=1, label="noise floor: bfloat16 arithmetic")
        if bound:
            axes.plot(list(bound), list(bound.values()), color=PALETTE[2], ls=":", label="Gaussian bound (a model)")
        if floor or bound:
            axes.legend(frameon=False, fontsize=8)
        axes.set_yscale("log")
        axes.set_xlabel("code_bits (bits per element, measured)")
        axes.set_ylabel("mean KL divergence (nats), lower is better")
        axes.set_title(group.title, fontsize=10)
        axes.grid(True, color="0.9")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
