"""What `pqkv bench --static` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from pqkv.config import BenchConfig
    from pqkv.record import Record


def static(wanted: BenchConfig, gpu: str, output: Path | None, format: str, everything: bool) -> None:
    """Compile every variant, print its figures and the model's predictions; `format` is table, csv or json."""
    from pqkv.record import RecordStore
    from pqkv.speed.static import gpu_named
    from pqkv.speed.static import static as run
    from pqkv_cli.progress import ProgressBar

    chosen = gpu_named(gpu)
    store = RecordStore(output) if output is not None else None
    with ProgressBar() as bar:
        records = list(run(wanted, chosen, store, everything=everything, report=bar.show))
    if format == "json":
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records], indent=1, allow_nan=False))
    elif format == "csv":
        import pandas as pd

        rows = [row | case for record in records for row in [_row(record)] for case in _predictions(record) or [{}]]
        typer.echo(pd.DataFrame(rows).to_csv(index=False), nl=False)
    else:
        _print(records, gpu, output)


def _row(record: Record) -> dict[str, Any]:
    c = record.config
    known = {name: metric.value for name, metric in record.metrics.items()}
    limits = record.tables.get("limits", [{}])[0]
    own = {key: c[key] for key in ("device", "bits", "num_subspaces", "nbits", "dtype", "group", "block")}
    return own | known | limits | {"note": "; ".join(record.notes)}


def _predictions(record: Record) -> list[dict[str, Any]]:
    return record.tables.get("predictions", [])


def _print(records: list[Record], gpu: str, output: Path | None) -> None:
    from rich.table import Table

    from pqkv_cli.output import console

    out = console()
    cases = [(record, case) for record in records for case in _predictions(record)]
    counted = any("key_instructions" in record.metrics for record in records) or any(
        case["predicted_ms"] is not None for _, case in cases
    )
    how = (
        "key, value: all SASS instructions of the innermost loop per (token, subspace, query head); the target is that "
        "of keys, a value look-up brings a word for each two elements; key table, value table: per word of them"
        if counted
        else "no instructions: put nvdisasm on PATH (it comes with the CUDA toolkit and with `pip install triton`)"
    )
    table = Table(title=f"kernels compiled for {gpu}", caption=how, box=None)
    for name in ("variant", "heads", "regs", "shared", "spilled", "stack", "blocks", "warps", "limited by",
                 "key", "value", "key table", "value table", "target"):  # fmt: skip
        table.add_column(name, justify="left" if name in ("variant", "limited by") else "right")
    for record in records:
        table.add_row(*_cells(_row(record)))
    out.print(table)
    if counted and cases:
        first = records[0].config
        model = Table(
            title=f"one decoding step, {first['heads']} query heads on {first['kv_heads']} KV heads, on {gpu}",
            caption="a model, not a measurement; what it leaves out stands in pqkv/speed/static.py",
            box=None,
        )
        for name in ("variant", "batch", "tokens", "predicted_ms"):
            model.add_column(name, justify="left" if name == "variant" else "right")
        for record, case in cases:
            ms = case["predicted_ms"]
            model.add_row(
                _name(_row(record)), str(case["batch"]), str(case["context"]), "" if ms is None else f"{ms:.4f}"
            )
        out.print(model)
    if output is not None:
        out.print(f"records: {output}")


def _name(row: dict[str, Any]) -> str:
    if not row["bits"]:
        return f"exact {row['dtype']}"
    return f"{row['bits']:g} bits ({row['num_subspaces']}x{row['nbits']})"


def _cells(row: dict[str, Any]) -> list[str]:
    if "registers" not in row:
        return [_name(row), str(row["group"]), row["note"]]

    def number(name: str, digits: int = 0) -> str:
        value = row.get(name)
        return "" if value is None else f"{value:.{digits}f}"

    target = row.get("target_instructions")
    return [
        _name(row),
        str(row["group"]),
        number("registers"),
        number("static_shared_bytes"),
        number("spill_bytes"),
        number("stack_bytes"),
        number("blocks_per_multiprocessor"),
        number("warps_per_multiprocessor"),
        row["limit"],
        number("key_instructions", 2),
        number("value_instructions", 2),
        number("key_table_instructions", 1),
        number("value_table_instructions", 1),
        "" if target is None else f"<= {target:g}",
    ]
