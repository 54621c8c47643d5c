"""Which measure sees which fault, and from which context on: derived from the records of `quality-degradation`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pqkv.kernels.faults import FAULTS
from pqkv.record import Metric, Record, atomic_write
from pqkv.reproduce.degradation_claims import REPORTED_MASS, claims_of, model_of
from pqkv.reproduce.models import model_order, write_models
from pqkv.reproduce.tables import CLAIM_COLUMNS, claim, write_rows

FIGURES = (
    "perplexity_ratio", "agreement_at_1", "agreement_at_5", "agreement_at_10", "kld_mean", "recall", "recall_exact",
    "softmax_mass_error", "lse_mass_error",
)  # fmt: skip
_COLUMNS = ["model", "device", "bits", "fault", "context", *FIGURES, "finite", "seen_by"]


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure and when it counts as having seen a fault: a figure that is no number always does."""

    metric: str
    label: str
    rule: str
    sees: Callable[[float, float], bool]  # the figure of a cell, and of a sound one


# what a figure is where nothing is lost, which is what exact pages without a fault come to
SOUND = {"perplexity_ratio": 1.0, "kld_mean": 0.0, "softmax_mass_error": 0.0, "lse_mass_error": 0.0}
MEASURES: tuple[Measure, ...] = (
    Measure("perplexity_ratio", "perplexity", "off by over 1%", lambda x, sound: abs(x / sound - 1) > 0.01),
    Measure("agreement_at_1", "top-1", "over 1 point lost", lambda x, sound: x < sound - 0.01),
    Measure("agreement_at_5", "top-5", "over 1 point lost", lambda x, sound: x < sound - 0.01),
    Measure("agreement_at_10", "top-10", "over 1 point lost", lambda x, sound: x < sound - 0.01),
    Measure("kld_mean", "KLD", "over 0.001 nats more", lambda x, sound: x > sound + 1e-3),
    Measure("recall", "recall", "an answer lost", lambda x, sound: x < sound),
    Measure("softmax_mass_error", "softmax sum", "off by over 2e-5", lambda x, _: x > REPORTED_MASS),
    Measure("lse_mass_error", "log-sum-exp", "off by over 0.001", lambda x, _: x > 1e-3),
)


def sound_twins(records: Sequence[Record]) -> dict[str, Record]:
    """By digest of a cell on codes: the cell that differs from it in having no fault."""
    sound = {_twin_key(r): r for r in records if r.config["bits"] and r.config["backend"] not in FAULTS}
    return {r.digest: sound[_twin_key(r)] for r in records if r.config["bits"] and _twin_key(r) in sound}


def sees(measure: Measure, record: Record, twin: Record | None = None) -> bool | None:
    """Whether the measure tells this cell from a sound one; None where it was not taken.

    Exact pages are held to the exact cache, codes to `twin`, the same codes without a fault.
    """
    metric = record.metrics.get(measure.metric)
    if metric is None or (record.config["bits"] and twin is None):
        return None
    if metric.value is None:
        return True
    exact = _value(record, "recall_exact") if measure.metric == "recall" else SOUND.get(measure.metric, 1.0)
    sound = exact if twin is None else _value(twin, measure.metric)
    return sound is not None and measure.sees(metric.value, sound)


def _twin_key(record: Record) -> tuple[object, ...]:
    c = record.config
    keys = ("model", "model_weights", "device", "bits", "context", "windows", "page_size", "codebooks")
    return tuple(c.get(name) for name in keys)


def write_fingerprint(records: Sequence[Record], folder: Path) -> list[Path]:
    """`fingerprint.csv` (every cell), `fingerprint.md` (from which context on), `claims.csv`, and a picture for each
    model: `fingerprint.png` of the first, `fingerprint-<model>.png` of the others.
    """
    ran = [record for record in records if record.status == "ok"]
    twins = sound_twins(ran)
    rows = [_row(record, twins.get(record.digest)) for record in sorted(ran, key=_order)]
    table = write_rows(rows, folder / "fingerprint.csv", _COLUMNS)
    atomic_write(folder / "fingerprint.md", markdown(ran).encode())
    files = [table, folder / "fingerprint.md"]
    for number, (model, members) in enumerate(_by_model(ran).items()):
        name = f"fingerprint-{_file_name(model)}" if number else "fingerprint"
        picture = draw([record for record in members if record.config["device"] == "cpu"] or members)
        if picture is not None:
            atomic_write(folder / f"{name}.png", picture)
            files.append(folder / f"{name}.png")
    claims = [
        {
            "part": c.part,
            **claim(c.claim, c.theirs, c.ours, c.holds, c.model),
            "gpu": c.ours if c.device == "cuda" else None,
        }
        for c in claims_of(ran)
    ]
    return [*files, write_rows(claims, folder / "claims.csv", CLAIM_COLUMNS), *write_models(claims, folder)]


def markdown(records: Sequence[Record]) -> str:
    """The first context at which each measure sees each fault, a table for each model; a dash where none does."""
    rules = "; ".join(f"{measure.label}: {measure.rule}" for measure in MEASURES)
    return (
        "# Which measure sees which fault, and from which context on\n\n"
        + "\n\n".join(_table(model, members) for model, members in _by_model(records).items())
        + f"\n\nA dash: at none of the contexts measured. Seen means: {rules}; or no number at all. "
        "Exact pages are held to the exact cache, codes to the same codes without a fault.\n"
    )


def _table(model: str, records: Sequence[Record]) -> str:
    head = ["device", "fault", *(measure.label for measure in MEASURES)]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    twins = sound_twins(records)
    for (device, fault), members in _by_fault(records).items():
        cells = [_first_seen(measure, members, twins) for measure in MEASURES]
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


def _first_seen(measure: Measure, members: Sequence[Record], twins: dict[str, Record]) -> str:
    found = [
        (r.config["context"], sees(measure, r, twins.get(r.digest)))
        for r in sorted(members, key=lambda r: r.config["context"])
    ]
    seen = [context for context, saw in found if saw]
    if not seen:
        return "-" if any(saw is not None for _, saw in found) else "not taken"
    after = [saw for context, saw in found if context >= seen[0] and saw is not None]
    return str(seen[0]) if all(after) else ", ".join(map(str, seen)) + " only"


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
        names.index(name) if name in names else len(names) - 3,  # codes without a fault before those with
        fault_label(record),
        record.config["context"],
    )


def _row(record: Record, twin: Record | None) -> dict[str, Any]:
    return {
        "model": model_of(record),
        "device": record.config["device"],
        "bits": record.config["bits"],
        "fault": fault_label(record),
        "context": record.config["context"],
        **{name: _value(record, name) for name in FIGURES},
        "finite": all(m.value is not None for m in record.metrics.values()),
        "seen_by": " ".join(measure.metric for measure in MEASURES if sees(measure, record, twin)),
    }


def _value(record: Record, name: str) -> float | None:
    metric: Metric | None = record.metrics.get(name)
    return None if metric is None else metric.value


def draw(records: Sequence[Record]) -> bytes | None:
    """Faults by contexts of one model, a panel for each measure, as PNG: dark where the measure sees the fault. The
    same bytes for the same records.
    """
    groups = {fault: members for (_, fault), members in _by_fault(records).items()}
    contexts, twins = sorted({record.config["context"] for record in records}), sound_twins(records)
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
                    saw = sees(measure, record, twins.get(record.digest))
                    if saw is not None:
                        shades[y, contexts.index(record.config["context"])] = saw
            axes.imshow(shades, cmap=ListedColormap(["#dfe7ee", "#9c2f1f"]), vmin=0, vmax=1, aspect="auto")
            axes.set_title(f"{measure.label}\n{measure.rule}", fontsize=9)
            axes.set_xticks(range(len(contexts)), [str(c) for c in contexts], fontsize=8, rotation=60)
            axes.set_yticks(range(len(groups)), list(groups) if index % 2 == 0 else [""] * len(groups), fontsize=8)
            axes.set_xticks(np.arange(-0.5, len(contexts)), minor=True)
            axes.set_yticks(np.arange(-0.5, len(groups)), minor=True)
            axes.grid(which="minor", color="white", linewidth=1.5)
            axes.tick_params(which="both", length=0)
        figure.suptitle(
            f"{model_of(records[0])}: dark where the measure tells the faulty backend from a sound one "
            "(tokens of context below)",
            fontsize=11,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
