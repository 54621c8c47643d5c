"""What cells took before: read from the outcomes of sweeps and, of those that ran without one, from records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pqkv.config import digest_of
from pqkv.errors import RecordError
from pqkv.record import Record, load_records
from pqkv.sweep.outcome import Outcomes


@dataclass(frozen=True, slots=True)
class Past:
    """One cell that ran. `alike` as in `SweepCell`; `peak` None where nobody watched it."""

    alike: tuple[str, ...]
    context: int
    tokens: int
    seconds: float
    starting: float
    peak: int | None
    machine: str


def read_past(folders: Iterable[Path], machine: Callable[[], str]) -> list[Past]:
    """Everything measured in these folders and below, on this `machine` (its name, asked for only where there are
    several) where anything was, otherwise anywhere; what was measured twice counts as its outcome says.
    """
    found: list[Past] = []
    for folder in folders:
        if not folder.is_dir():
            raise RecordError(f"no folder of records at {folder}")
        outcomes = [
            one
            for cells in {path.parent.parent for path in folder.rglob("*.cell.json")}
            for one in Outcomes(cells).all()
        ]
        known = {digest for outcome in outcomes for digest in outcome.records}
        found += [
            Past(o.alike, o.context, o.tokens, o.seconds, o.starting, o.peak_rss, o.machine)
            for o in outcomes
            if o.status == "ok" and o.measured
        ]
        found += _of_records(record for record in load_records(folder) if record.digest not in known)
    if len({past.machine for past in found}) < 2:
        return found
    name = machine()
    return [past for past in found if past.machine == name] or found


def usual_start(past: Iterable[Past]) -> float | None:
    """Seconds that a process takes before its first cell, None where nothing says."""
    starts = [one.starting for one in past if one.starting > 0]
    return median(starts) if starts else None


def _of_records(records: Iterable[Record]) -> Iterator[Past]:
    from pqkv.report.series import machine_of  # imports torch, which a plan can do without

    for record in records:
        c = record.config
        if record.kind != "eval" or record.status != "ok" or not {"model", "context", "windows", "mode"} <= set(c):
            continue
        tokens = c["context"] * c["windows"] * (1 + bool(c.get("control")))
        what = ["eval", c["model"], c.get("dtype"), c.get("device"), [c["mode"]], c.get("metrics")]
        yield Past(
            ("", digest_of(what), digest_of(what[:4])), c["context"], tokens, record.seconds, 0.0, None,
            machine_of(record),
        )  # fmt: skip
