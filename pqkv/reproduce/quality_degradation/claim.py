"""A claim beside what was found, and the words and figures of cells that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pqkv.record import Record
from pqkv.reproduce.quality_degradation.verdicts import FEWEST_WINDOWS, REPORTED_MASS, finite
from pqkv.reproduce.tables import Row, claim

NOT_RUN = "not run"
TOO_FEW = f"under {FEWEST_WINDOWS} windows a context say nothing of others"


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of claims.csv; `holds` is None where it is not known, and `ours` then says why."""

    part: str
    claim: str
    theirs: str
    ours: str
    holds: bool | None
    device: str = "cpu"
    model: str = ""

    def row(self) -> Row:
        """As claims.csv has it; what a GPU gave stands in its own column too."""
        row = claim(self.claim, self.theirs, self.ours, self.holds, self.model)
        return {"part": self.part, **row, "gpu": self.ours if self.device == "cuda" else None}


def model_of(record: Record) -> str:
    """The model whose figures a record holds."""
    return str(record.config["model"])


def of_faults(records: Sequence[Record], *names: str) -> list[Record]:
    """Cells of the faults whose names begin so, shortest context first."""
    wanted = [r for r in records if any(str(r.config["backend"]).startswith(f"fault:{name}") for name in names)]
    return sorted(wanted, key=lambda r: r.config["context"])


def kld(record: Record) -> float:
    """Mean KLD; what is no number is infinitely far."""
    metric = record.metrics.get("kld_mean")
    return float("inf") if metric is None or metric.value is None else metric.value


def contexts_of(records: Sequence[Record]) -> str:
    """For a sentence."""
    return ", ".join(str(c) for c in sorted({r.config["context"] for r in records})) or "none"


def names_of(records: Sequence[Record], *, contexts: bool = False) -> str:
    """Faults of some cells, for a sentence."""
    found = {(str(r.config["backend"]).removeprefix("fault:"), r.config["context"] if contexts else 0) for r in records}
    return ", ".join(f"{name} at {context}" if contexts else name for name, context in sorted(found)) or "none"


def of_unknown(cells: Sequence[Record]) -> str:
    """For a sentence: cells in which an interval holds both answers, nothing where there are none."""
    return f"; its interval holds both answers in {len(cells)}: {names_of(cells)}" if cells else ""


def number(record: Record, name: str) -> float:
    """A figure of a record; what is no number is infinite."""
    value = record.metrics[name].value
    return float("inf") if value is None else value


def passes_sum_test(record: Record) -> bool:
    """Whether its softmax sums to 1 as the report's test wants it."""
    return finite(record) and number(record, "softmax_mass_error") <= REPORTED_MASS
