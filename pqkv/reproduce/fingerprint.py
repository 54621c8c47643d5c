"""Which measure sees which fault, and from which context on: derived from the records of `quality-degradation`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pqkv.kernels.faults import FAULTS
from pqkv.record import Metric, Record, atomic_write
from pqkv.reproduce.claims import write_claims, write_table
from pqkv.reproduce.degradation_claims import claims_of

FIGURES = (
    "perplexity_ratio", "agreement_at_1", "agreement_at_5", "agreement_at_10", "kld_mean", "recall", "recall_exact",
    "softmax_mass_error", "lse_mass_error",
)  # fmt: skip
_COLUMNS = ["device", "bits", "fault", "context", *FIGURES, "finite", "seen_by"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure and when it counts as having seen a fault: a figure that is no number always does."""

    metric: str
    label: str
    rule: str
    sees: Callable[[float, Record], bool]


MEASURES: tuple[Measure, ...] = (
    Measure("perplexity_ratio", "perplexity", "off by over 1%", lambda x, _: abs(x - 1) > 0.01),
    Measure("agreement_at_1", "top-1", "under 99%", lambda x, _: x < 0.99),
    Measure("agreement_at_5", "top-5", "under 99%", lambda x, _: x < 0.99),
    Measure("agreement_at_10", "top-10", "under 99%", lambda x, _: x < 0.99),
    Measure("kld_mean", "KLD", "over 0.001 nats", lambda x, _: x > 1e-3),
    Measure("recall", "recall", "under the exact cache's", lambda x, r: x < (_value(r, "recall_exact") or 0.0)),
    Measure("softmax_mass_error", "softmax sum", "off by over 0.001", lambda x, _: x > 1e-3),
    Measure("lse_mass_error", "log-sum-exp", "off by over 0.001", lambda x, _: x > 1e-3),
)


def sees(measure: Measure, record: Record) -> bool | None:
    """Whether the measure tells this cell from a sound one; None where it was not taken."""
    metric = record.metrics.get(measure.metric)
    if metric is None:
        return None
    return metric.value is None or measure.sees(metric.value, record)


def write_fingerprint(records: Sequence[Record], folder: Path) -> list[Path]:
    """`fingerprint.csv` (every cell), `fingerprint.md` (from which context on), `fingerprint.png`, `claims.csv`."""
    ran = [record for record in records if record.status == "ok"]
    rows = [_row(record) for record in sorted(ran, key=_order)]
    table = write_table(rows, _COLUMNS, folder / "fingerprint.csv")
    atomic_write(folder / "fingerprint.md", markdown(ran).encode())
    files = [table, folder / "fingerprint.md"]
    picture = draw([record for record in ran if record.config["device"] == "cpu"] or ran)
    if picture is not None:
        atomic_write(folder / "fingerprint.png", picture)
        files.append(folder / "fingerprint.png")
    return [*files, write_claims(claims_of(ran), folder)]


def markdown(records: Sequence[Record]) -> str:
    """The first context at which each measure sees each fault; a dash where none does."""
    head = ["device", "fault", *(measure.label for measure in MEASURES)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for (device, fault), members in _by_fault(records).items():
        cells = [_first_seen(measure, members) for measure in MEASURES]
        lines.append(f"| {device} | {fault} | {' | '.join(cells)} |")
    contexts = ", ".join(str(c) for c in sorted({r.config["context"] for r in records}))
    rules = "; ".join(f"{measure.label}: {measure.rule}" for measure in MEASURES)
    return (
        "# Which measure sees which fault, and from which context on\n\n"
        + "\n".join(lines)
        + f"\n\nContexts measured: {contexts}. A dash: at none of them. Seen means: {rules}; or no number at all.\n"
    )


def fault_label(record: Record) -> str:
    """The fault of a cell, `none` with its bits for codes without one."""
    name = str(record.config["backend"])
    if name in FAULTS:
        return name.removeprefix("fault:")
    return f"none ({record.config['bits']:g} bits)"


def _first_seen(measure: Measure, members: Sequence[Record]) -> str:
    found = [(r.config["context"], sees(measure, r)) for r in sorted(members, key=lambda r: r.config["context"])]
    seen = [context for context, saw in found if saw]
    if not seen:
        return "-" if any(saw is not None for _, saw in found) else "not taken"
    # from there on at every context, or at some only?
    after = [saw for context, saw in found if context >= seen[0] and saw is not None]
    return str(seen[0]) if all(after) else f"{seen[0]} (not at all after)"


def _by_fault(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=_order):
        groups.setdefault((record.config["device"], fault_label(record)), []).append(record)
    return groups


def _order(record: Record) -> tuple[str, int, str, int]:
    names = list(FAULTS)
    name = record.config["backend"]
    return (
        record.config["device"],
        names.index(name) if name in names else len(names) - 3,  # codes without a fault before those with
        fault_label(record),
        record.config["context"],
    )


def _row(record: Record) -> dict[str, Any]:
    taken = [measure for measure in MEASURES if sees(measure, record) is not None]
    return {
        "device": record.config["device"],
        "bits": record.config["bits"],
        "fault": fault_label(record),
        "context": record.config["context"],
        **{name: _value(record, name) for name in FIGURES},
        "finite": all(m.value is not None for m in record.metrics.values()),
        "seen_by": " ".join(measure.metric for measure in taken if sees(measure, record)),
    }


def _value(record: Record, name: str) -> float | None:
    metric: Metric | None = record.metrics.get(name)
    return None if metric is None else metric.value


def draw(records: Sequence[Record]) -> bytes | None:
    """Faults by contexts, a panel for each measure, as PNG: dark where the measure sees the fault. The same bytes for
    the same records.
    """
    groups = {fault: members for (_, fault), members in _by_fault(records).items()}
    contexts = sorted({record.config["context"] for record in records})
    if not groups:
        return None
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(13, 0.24 * len(groups) * 2 + 2.2), dpi=144, layout="constrained")
        FigureCanvasAgg(figure)
        for index, measure in enumerate(MEASURES):
            axes = figure.add_subplot(2, 4, index + 1)
            shades = np.full((len(groups), len(contexts)), np.nan)
            for y, members in enumerate(groups.values()):
                for record in members:
                    saw = sees(measure, record)
                    if saw is not None:
                        shades[y, contexts.index(record.config["context"])] = saw
            axes.imshow(shades, cmap=ListedColormap(["#dfe7ee", "#9c2f1f"]), vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"{measure.label}\n{measure.rule}", fontsize=9)
            axes.set_xticks(range(len(contexts)), [str(c) for c in contexts], fontsize=8, rotation=60)
            axes.set_yticks(range(len(groups)), list(groups) if index % 4 == 0 else [""] * len(groups), fontsize=8)
            axes.set_xticks(np.arange(-0.5, len(contexts)), minor=True)
            axes.set_yticks(np.arange(-0.5, len(groups)), minor=True)
            axes.grid(which="minor", color="white", linewidth=1.5)
            axes.tick_params(which="both", length=0)
        figure.suptitle(
            "dark: the measure tells the faulty backend from a sound one (tokens of context below)", fontsize=11
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
