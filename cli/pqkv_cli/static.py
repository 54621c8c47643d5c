"""What `pqkv bench --static` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pqkv_cli.output import console, echo
from pqkv_cli.records import echo_json
from pqkv_cli.table import print_lines, print_table

if TYPE_CHECKING:
    from pqkv.config import BenchConfig
    from pqkv.record import Record
    from pqkv.speed.static import Gpu


_COLUMNS = (
    "variant", "heads", "regs", "shared", "spilled", "stack", "blocks", "warps", "limited by",
    "key", "value", "key table", "value table", "target",
)  # fmt: skip


_TAKEN = ("taken for granted", "value", "source")
_LEFT = ("left out", "how much", "counted by")


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
        echo_json(records)
    elif format == "csv":
        import pandas as pd

        rows = [row | case for record in records for row in [_row(record)] for case in _predictions(record) or [{}]]
        echo(pd.DataFrame(rows).to_csv(index=False), end="")
    else:
        _print(records, gpu, output)
        _print_model(wanted, chosen, everything=everything)


def _row(record: Record) -> dict[str, Any]:
    c = record.config
    known = {name: metric.value for name, metric in record.metrics.items()}
    limits = record.tables.get("limits", [{}])[0]
    own = {key: c[key] for key in ("device", "bits", "num_subspaces", "nbits", "dtype", "group", "block")}
    return own | known | limits | {"note": "; ".join(record.notes)}


def _predictions(record: Record) -> list[dict[str, Any]]:
    return record.tables.get("predictions", [])


def _print(records: list[Record], gpu: str, output: Path | None) -> None:
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
    rows = [_row(record) for record in records]
    print_table(
        out,
        _COLUMNS,
        [_cells(row) for row in rows if "registers" in row],
        words=("variant", "limited by"),
        title=f"kernels compiled for {gpu}",
        caption=how,
    )
    for row in rows:
        if "registers" not in row:
            print_lines(out, f"{_name(row)}, {row['group']} query heads: {row['note']}")
    if counted and cases:
        first = records[0].config
        print_table(
            out,
            ("variant", "batch", "tokens", "predicted_ms"),
            [
                [
                    _name(_row(record)),
                    str(case["batch"]),
                    str(case["context"]),
                    "" if case["predicted_ms"] is None else f"{case['predicted_ms']:.4f}",
                ]
                for record, case in cases
            ],
            words=("variant",),
            title=f"one decoding step, {first['heads']} query heads on {first['kv_heads']} KV heads, on {gpu}",
            caption="a model, not a measurement, of product codes; what it leaves out stands below",
        )
    if output is not None:
        echo(f"records: {output}")


def _print_model(wanted: BenchConfig, gpu: Gpu, *, everything: bool) -> None:
    """What the model takes for granted, and what it leaves out of the first variant on codes that `wanted` launches."""
    from pqkv.kernels.cuda.backend import heads_of_block
    from pqkv.kernels.cuda.coded import CodedVariant
    from pqkv.speed.assumptions import assumptions, left_out
    from pqkv.speed.static import variants

    own = heads_of_block(wanted.heads // wanted.kv_heads)
    coded = [one for *_, one in variants(wanted, everything) if isinstance(one, CodedVariant) and one.group == own]
    if not coded:
        return
    out, codes = console(), coded[0].keys
    print_table(out, _TAKEN, assumptions(gpu), words=_TAKEN, title="what the model takes for granted")
    title = f"what it leaves out of a step, codes {codes.num_subspaces}x{codes.nbits}, {own} heads a block"
    print_table(out, _LEFT, left_out(wanted, coded[0], gpu), words=_LEFT, title=title)


def _name(row: dict[str, Any]) -> str:
    if not row["bits"]:
        return f"exact {row['dtype']}"
    return f"{row['bits']:g} bits ({row['num_subspaces']}x{row['nbits']})"


def _cells(row: dict[str, Any]) -> list[str]:
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
