"""The table of `pqkv eval --plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pqkv_cli.output import console, echo
from pqkv_cli.records import RecordFormat
from pqkv_cli.table import print_table

if TYPE_CHECKING:
    from pqkv.quality.plan import PlannedJob

_TERMS = {
    "copies": "copies",
    "exact_states": "exact states",
    "exact_forward": "exact forward",
    "coded_run": "coded run",
    "comparison": "comparison",
    "libraries": "libraries",
}


def print_plan(planned: list[PlannedJob], format: RecordFormat) -> None:
    """One row per job: what it takes beside the weights when most of it is alive, term by term."""
    if format is RecordFormat.json:
        echo(json.dumps([_fields(one) for one in planned], indent=1))
        return
    columns = ("cell", "windows", "peak", *_TERMS.values(), "record")
    if format is RecordFormat.csv:
        import pandas

        echo(pandas.DataFrame([_fields(one) for one in planned]).to_csv(index=False), end="")
        return
    from pqkv.quality.memory import available_memory

    free = available_memory()
    print_table(
        console(),
        columns,
        [
            (
                one.job.label, str(one.job.config["windows"]), _size(one.job.estimate.peak),
                *(_size(getattr(one.job.estimate, term)) for term in _TERMS), _record(one),
            )
            for one in planned
        ],
        words=("cell", "record"),
        title="estimated memory of each cell beside the weights; nothing was run",
        caption="peak: exact states, copies of weights, libraries and the largest of forward, coded run and comparison"
        + (f"; available now: {_size(free)}" if free else ""),
    )  # fmt: skip


def _fields(planned: PlannedJob) -> dict[str, Any]:
    job = planned.job
    return {
        "kind": job.kind, **{name: job.config[name] for name in ("bits", "mode", "context", "windows")},
        "floor": job.config.get("floor"), "peak_bytes": job.estimate.peak,
        **{f"{term}_bytes": size for term, size in asdict(job.estimate).items()},
        "codebooks_trained": job.trained, "recorded": planned.recorded,
    }  # fmt: skip


def _record(planned: PlannedJob) -> str:
    if not planned.job.trained:
        return "no: codebooks to be trained"
    return "" if planned.recorded is None else "there" if planned.recorded else "no"


def _size(count: int) -> str:
    """Nothing for what takes nothing: a column that no job has is left out."""
    if not count:
        return ""
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"
