"""The table of `pqkv eval --plan`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pqkv_cli.output import console, echo
from pqkv_cli.records import RecordFormat
from pqkv_cli.table import print_table

if TYPE_CHECKING:
    from pqkv.quality.plan import PlannedCell

_TERMS = {
    "exact_states": "exact states",
    "exact_forward": "exact forward",
    "coded_run": "coded run",
    "comparison": "comparison",
    "libraries": "libraries",
}


def print_plan(planned: list[PlannedCell], format: RecordFormat) -> None:
    """One row per cell: what it takes beside the weights when most of it is alive, term by term."""
    if format is RecordFormat.json:
        echo(json.dumps([_fields(cell) for cell in planned], indent=1))
        return
    columns = ("cell", "windows", "peak", *_TERMS.values(), "record")
    if format is RecordFormat.csv:
        import pandas

        echo(pandas.DataFrame([_fields(cell) for cell in planned]).to_csv(index=False), end="")
        return
    from pqkv.quality.memory import available_memory

    free = available_memory()
    print_table(
        console(),
        columns,
        [
            (
                cell.cell.label, str(cell.windows), _size(cell.estimate.peak),
                *(_size(getattr(cell.estimate, term)) for term in _TERMS), _record(cell),
            )
            for cell in planned
        ],
        words=("cell", "record"),
        title="estimated memory of each cell beside the weights; nothing was run",
        caption="peak: exact states and libraries, and the largest of forward, coded run and comparison"
        + (f"; available now: {_size(free)}" if free else ""),
    )  # fmt: skip


def _fields(planned: PlannedCell) -> dict[str, Any]:
    cell = planned.cell
    return {
        "bits": cell.coding.bits, "mode": cell.mode, "context": cell.context, "windows": planned.windows,
        "peak_bytes": planned.estimate.peak,
        **{f"{term}_bytes": size for term, size in asdict(planned.estimate).items()},
        "codebooks_trained": planned.trained, "recorded": planned.recorded,
    }  # fmt: skip


def _record(planned: PlannedCell) -> str:
    if not planned.trained:
        return "no: codebooks to be trained"
    return "" if planned.recorded is None else "there" if planned.recorded else "no"


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"
