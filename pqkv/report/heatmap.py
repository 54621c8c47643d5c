"""Where damage comes from, as a picture: a layer a row, keys, values and both a column, KLD on a logarithmic scale."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pqkv.record import Record, atomic_write
from pqkv.report.drawing import DPI
from pqkv.report.series import mode_name, shape_name

if TYPE_CHECKING:
    import numpy as np

SIDES = ("keys", "values", "both")


def write_heatmaps(records: Iterable[Record], folder: Path) -> list[Path]:
    """Write one PNG for each record that has a table `by_layer`; return the paths."""
    written = []
    for record in records:
        if rows := record.tables.get("by_layer"):
            path = Path(folder) / f"kld_by_layer_{record.digest}.png"
            atomic_write(path, _picture(record, rows))
            written.append(path)
    return written


def _picture(record: Record, rows: list[dict[str, float]]) -> bytes:
    import matplotlib as mpl
    import numpy as np

    values = np.array([[row.get(side) or np.nan for side in SIDES] for row in rows])
    seen = values[np.isfinite(values) & (values > 0)]
    with mpl.rc_context():
        mpl.rcdefaults()  # a matplotlibrc of the user's must not change the picture
        return _drawn(record, values, seen, [str(row["layer"]) for row in rows])


def _drawn(record: Record, values: np.ndarray, seen: np.ndarray, layers: list[str]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 1.4 + 0.22 * len(layers)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    norm = LogNorm(seen.min(), seen.max()) if len(seen) and seen.min() < seen.max() else None
    image = axes.imshow(values, aspect="auto", cmap="viridis", norm=norm)
    axes.set_xticks(range(len(SIDES)), SIDES)
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set_ylabel("layer")
    config = record.config
    axes.set_title(
        f"{config['model']} on {config['data']}, {shape_name(config)}\n{mode_name(config)}, {config['context']} tokens",
        fontsize=8,
    )
    figure.colorbar(image, label="KLD of this part coded alone (nats)")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()
