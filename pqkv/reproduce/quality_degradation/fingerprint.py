"""Which measure sees which fault, and from which context on: derived from the records of `quality-degradation`."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pqkv.kernels.faults import FAULTS
from pqkv.record import Metric, Record, atomic_write
from pqkv.reproduce.models import model_order
from pqkv.reproduce.quality_degradation.claim import model_of
from pqkv.reproduce.quality_degradation.verdicts import FEWEST_WINDOWS, MEASURES, Measure, sees, taken
from pqkv.reproduce.tables import write_rows

FIGURES = (
    "perplexity_ratio", "agreement_at_1", "agreement_at_5", "agreement_at_10", "kld_mean", "recall", "recall_exact",
    "softmax_mass_error", "lse_mass_error", "logit_error",
)  # fmt: skip
_COLUMNS = ["model", "device", "bits", "fault", "context", *FIGURES, "finite", "seen_by", "not_known"]


Judged = dict[str, dict[str, bool | None]]  # by digest of a record and metric; what was not taken is not there


def sound_twins(records: Sequence[Record]) -> dict[str, Record]:
    """By digest of a cell on codes: the cell that differs from it in having no fault."""
    sound = {_twin_key(r): r for r in records if r.config["bits"] and r.config["backend"] not in FAULTS}
    return {r.digest: sound[_twin_key(r)] for r in records if r.config["bits"] and _twin_key(r) in sound}


def judged(records: Sequence[Record]) -> Judged:
    """What each measure says of each cell: seen, not seen, or None, not known. The contexts of a fault are as many
    comparisons, of which one alone is a verdict on it.
    """
    twins, found = sound_twins(records), {}
    for members in (group for of_model in _by_model(records).values() for group in _by_fault(of_model).values()):
        for record in members:
            twin = twins.get(record.digest)
            found[record.digest] = {
                measure.metric: sees(measure, record, twin, len(members))
                for measure in MEASURES
                if taken(measure, record, twin)
            }
    return found


def _twin_key(record: Record) -> tuple[object, ...]:
    c = record.config
    keys = ("model", "model_weights", "device", "bits", "context", "windows", "page_size", "codebooks")
    return tuple(c.get(name) for name in keys)


def write_fingerprint(records: Sequence[Record], folder: Path) -> list[Path]:
    """`fingerprint.csv`, `fingerprint.md` and a picture for each model, of the cells of part a that ran."""
    ran = [record for record in records if record.kind == "eval" and record.status == "ok"]
    if not ran:
        return []
    said = judged(ran)
    table = write_rows([_row(r, said[r.digest]) for r in sorted(ran, key=_order)], folder / "fingerprint.csv", _COLUMNS)
    atomic_write(folder / "fingerprint.md", markdown(ran).encode())
    files = [table, folder / "fingerprint.md"]
    for number, (model, members) in enumerate(_by_model(ran).items()):
        name = f"fingerprint-{_file_name(model)}" if number else "fingerprint"
        picture = draw([record for record in members if record.config["device"] == "cpu"] or members)
        if picture is not None:
            atomic_write(folder / f"{name}.png", picture)
            files.append(folder / f"{name}.png")
    return files


def markdown(records: Sequence[Record]) -> str:
    """The first context at which each measure sees each fault, a table for each model; a dash where none does."""
    rules = "; ".join(f"{measure.label}: {measure.rule}" for measure in MEASURES)
    said = judged(records)
    return (
        "# Which measure sees which fault, and from which context on\n\n"
        + "\n\n".join(_table(model, members, said) for model, members in _by_model(records).items())
        + f"\n\nA dash: at none of the contexts measured; a question mark: not known at those behind it. "
        f"Seen means: {rules}; or no number at all. The whole interval of a figure has to say so, corrected for the "
        f"contexts of a fault; of fewer than {FEWEST_WINDOWS} windows, every one of them. "
        "Exact pages are held to the exact cache, codes to the same codes without a fault.\n"
    )


def _table(model: str, records: Sequence[Record], said: Judged) -> str:
    head = ["device", "fault", *(measure.label for measure in MEASURES)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for (device, fault), members in _by_fault(records).items():
        cells = [_first_seen(measure, members, said) for measure in MEASURES]
        lines.append(f"| {device} | {fault} | {' | '.join(cells)} |")
    contexts = ", ".join(str(c) for c in sorted({r.config["context"] for r in records}))
    windows = ", ".join(str(n) for n in sorted({r.config["windows"] for r in records}))
    return f"## {model}\n\nContexts: {contexts}. Windows: {windows}.\n\n" + "\n".join(lines)


def fault_label(record: Record) -> str:
    """The fault of a cell, `none` with its bits for codes without one."""
    name = str(record.config["backend"])
    if name in FAULTS:
        return name.removeprefix("fault:")
    return f"none ({record.config['bits']:g} bits)"


def _first_seen(measure: Measure, members: Sequence[Record], said: Judged) -> str:
    """Contexts from which on it is seen, or all at which it is; then those at which that is not known."""
    ordered = sorted(members, key=lambda r: r.config["context"])
    found = {r.config["context"]: said[r.digest][measure.metric] for r in ordered if measure.metric in said[r.digest]}
    if not found:
        return "not taken"
    seen = [context for context, saw in found.items() if saw]
    unknown = [context for context, saw in found.items() if saw is None]
    told = "-"
    if seen:
        throughout = all(saw for context, saw in found.items() if context >= seen[0])
        told = str(seen[0]) if throughout else ", ".join(map(str, seen)) + " only"
    return " ".join([told, *(["?", ", ".join(map(str, unknown))] if unknown else [])])


def _by_model(records: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for record in sorted(records, key=_order):
        groups.setdefault(model_of(record), []).append(record)
    return groups


def _file_name(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", model)


def _by_fault(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=_order):
        groups.setdefault((record.config["device"], fault_label(record)), []).append(record)
    return groups


def _order(record: Record) -> tuple[tuple[bool, str], str, int, str, int]:
    names = list(FAULTS)
    name = record.config["backend"]
    return (
        model_order(model_of(record)),
        record.config["device"],
        # codes without a fault before those with
        names.index(name) if name in names else sum(fault.in_kernel for fault in FAULTS.values()),
        fault_label(record),
        record.config["context"],
    )


def _row(record: Record, said: dict[str, bool | None]) -> dict[str, Any]:
    return {
        "model": model_of(record),
        "device": record.config["device"],
        "bits": record.config["bits"],
        "fault": fault_label(record),
        "context": record.config["context"],
        **{name: _value(record, name) for name in FIGURES},
        "finite": all(m.value is not None for m in record.metrics.values()),
        "seen_by": " ".join(metric for metric, saw in said.items() if saw),
        "not_known": " ".join(metric for metric, saw in said.items() if saw is None),
    }


def _value(record: Record, name: str) -> float | None:
    metric: Metric | None = record.metrics.get(name)
    return None if metric is None else metric.value


def draw(records: Sequence[Record]) -> bytes | None:
    """Faults by contexts of one model, a panel for each measure, as PNG: dark where the measure sees the fault, in
    between where that is not known. The same bytes for the same records.
    """
    groups = {fault: members for (_, fault), members in _by_fault(records).items()}
    contexts, said = sorted({record.config["context"] for record in records}), judged(records)
    if not groups:
        return None
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        figure = Figure(figsize=(8.2, 0.22 * len(groups) * 4 + 3.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        for index, measure in enumerate(MEASURES):
            axes = figure.add_subplot(4, 2, index + 1)
            shades = np.full((len(groups), len(contexts)), np.nan)
            for y, members in enumerate(groups.values()):
                for record in members:
                    if measure.metric in said[record.digest]:
                        saw = said[record.digest][measure.metric]
                        shades[y, contexts.index(record.config["context"])] = 0.5 if saw is None else saw
            axes.imshow(shades, cmap=ListedColormap(["#dfe7ee", "#e0b48c", "#9c2f1f"]), vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"{measure.label}\n{measure.rule}", fontsize=9)
            axes.set_xticks(range(len(contexts)), [str(c) for c in contexts], fontsize=8, rotation=60)
            axes.set_yticks(range(len(groups)), list(groups) if index % 2 == 0 else [""] * len(groups), fontsize=8)
            axes.set_xticks(np.arange(-0.5, len(contexts)), minor=True)
            axes.set_yticks(np.arange(-0.5, len(groups)), minor=True)
            axes.grid(which="minor", color="white", linewidth=1.5)
            axes.tick_params(which="both", length=0)
        figure.suptitle(
            f"{model_of(records[0])}: dark where the measure tells the faulty backend from a sound one, "
            "light brown where that is not known (tokens of context below)",
            fontsize=11,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
