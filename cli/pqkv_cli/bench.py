"""`pqkv bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqkv_cli.evaluate import EvalFormat
from pqkv_cli.flags import layered, option, split_list

if TYPE_CHECKING:
    from pqkv.record import Record

_GRID, _SHAPE, _CACHE, _MEASURE, _OUT = "Grid", "Attention", "Cache", "Measuring", "Output"


def bench(
    lengths: Annotated[
        str | None, option("Tokens in the cache, by commas.", _GRID, "128,512,1024,2048,4096,8192,32768")
    ] = None,
    batch: Annotated[str | None, option("Sequences at once, by commas.", _GRID, "1")] = None,
    bits: Annotated[
        str | None, option("Bits per element, by commas; 0 is the paged exact cache.", _GRID, "4,2")
    ] = None,
    num_subspaces: Annotated[int | None, option("Codes per vector, instead of --bits.", _GRID, False)] = None,
    nbits: Annotated[int | None, option("Bits of a code, with --num-subspaces.", _GRID, False)] = None,
    ragged: Annotated[
        bool | None,
        option("Sequences of a batch from an eighth of the length up to it.", _GRID, "off", "--ragged/--equal"),
    ] = None,
    heads: Annotated[int | None, option("Query heads.", _SHAPE, "32")] = None,
    kv_heads: Annotated[int | None, option("Key and value heads.", _SHAPE, "8")] = None,
    head_dim: Annotated[int | None, option("Elements of a head.", _SHAPE, "128")] = None,
    window: Annotated[int | None, option("Sliding window in tokens.", _SHAPE, "none")] = None,
    dtype: Annotated[
        str | None, option("Of query and exact parts: float32, bfloat16, float16.", _SHAPE, "float32")
    ] = None,
    page_size: Annotated[int | None, option("Tokens in a page.", _CACHE, "64")] = None,
    residual: Annotated[int | None, option("Capacity of the exact window of newest tokens.", _CACHE, "128")] = None,
    sink_tokens: Annotated[int | None, option("First tokens that stay exact.", _CACHE, "4")] = None,
    key_layout: Annotated[str | None, option("row or transposed.", _CACHE, "transposed")] = None,
    value_layout: Annotated[str | None, option("row or transposed.", _CACHE, "transposed")] = None,
    backend: Annotated[str | None, option("cpu, reference or auto.", _MEASURE, "auto")] = None,
    fallback: Annotated[
        bool | None,
        option("Where a backend cannot run, take the next and say so.", _MEASURE, "on", "--fallback/--no-fallback"),
    ] = None,
    repeats: Annotated[int | None, option("Timed rounds of a cell.", _MEASURE, "21")] = None,
    threads: Annotated[int | None, option("Threads of everything that is timed.", _MEASURE, "as torch has")] = None,
    seed: Annotated[int | None, option("Of the random cache.", _MEASURE, "0")] = None,
    config: Annotated[Path | None, option("TOML or JSON with the same keys; flags win.", _OUT, False)] = None,
    output: Annotated[
        Path | None,
        option("Folder for one record per cell; finished cells are not run again.", _OUT, False, "-o", "--output"),
    ] = None,
    force: Annotated[bool, option("Run cells that have a record again.", _OUT, False, "--force")] = False,
    format: Annotated[EvalFormat, option("What to print.", _OUT, "table")] = EvalFormat.table,
    static: Annotated[
        bool,
        option("Time nothing: compile the CUDA kernels, count, and predict by a model.", _MEASURE, False, "--static"),
    ] = False,
    gpu: Annotated[str, option("With --static: h100, h200 or a100.", _MEASURE, "h100")] = "h100",
) -> None:
    """Time decoding attention on codes beside the strongest exact attention of the same run.

    Every combination of shape, batch and length is a cell: first checked against the float64 reference, then timed with
    cold caches, all contestants in turn.
    """
    flags: dict[str, Any] = {
        "lengths": split_list(lengths, int, "--lengths"),
        "batch": split_list(batch, int, "--batch"),
        "bits": split_list(bits, float, "--bits"),
        "num_subspaces": num_subspaces,
        "nbits": nbits,
        "ragged": ragged,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "window": window,
        "dtype": dtype,
        "page_size": page_size,
        "residual": residual,
        "sink_tokens": sink_tokens,
        "key_layout": key_layout,
        "value_layout": value_layout,
        "backend": backend,
        "fallback": fallback,
        "repeats": repeats,
        "threads": threads,
        "seed": seed,
    }
    values, source = layered(config, flags)
    from pqkv.config import BenchConfig

    wanted = BenchConfig.parse(values, source=source)
    if static:
        from pqkv_cli.static import static as print_static

        print_static(wanted, gpu, output, format.value, everything=not {"bits", "num_subspaces"} & set(values))
        return
    records = _run(wanted, output, force)
    if format is EvalFormat.json:
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records], indent=1, allow_nan=False))
    elif format is EvalFormat.csv:
        from pqkv.report import to_frame

        typer.echo(to_frame(records).to_csv(index=False), nl=False)
    else:
        _print(records, output)
    failed = [record for record in records if record.status == "failed"]
    if failed:
        from pqkv.errors import PqkvError

        raise PqkvError(f"{len(failed)} of {len(records)} cells failed: {failed[0].error}")


def _run(wanted: Any, output: Path | None, force: bool) -> list[Record]:  # noqa: ANN401 - BenchConfig, imported late
    from pqkv.record import RecordStore
    from pqkv_cli.progress import ProgressBar

    store = RecordStore(output) if output is not None else None
    records = []
    with ProgressBar() as bar:
        from pqkv.speed.bench import bench as run

        for record in run(wanted, store, force=force, report=bar.show):
            records.append(record)
            for note in record.notes:
                bar.say(f"note: {note}")
            if record.status == "failed":
                bar.say(f"failed: {record.error}")
    return records


def _print(records: list[Record], output: Path | None) -> None:
    from rich.table import Table

    from pqkv.report.series import machine_of
    from pqkv.speed.bench import break_even
    from pqkv_cli.output import console

    ran = [record for record in records if record.status == "ok"]
    out = console()
    if ran:
        first = ran[0].config
        table = Table(
            title=f"decoding attention, {first['model']}, backend {first['backend']}, {first['threads']} threads",
            caption=f"medians of {first['repeats']} cold runs, 95% intervals; exact: the fastest of torch's forms in "
            f"the same rounds; of copy: bytes read a second over the copy bandwidth of this run; {machine_of(ran[0])}",
            box=None,
        )
        for name in ("bits", "batch", "tokens", "ms", "exact ms", "speed-up", "fastest exact", "GB/s", "of copy"):
            table.add_column(name, justify="left" if name == "fastest exact" else "right")
        for record in ran:
            table.add_row(*_cells(record))
        out.print(table)
        groups: dict[tuple[float, int], list[Record]] = {}
        for record in ran:
            groups.setdefault((record.config["bits"], record.config["batch"]), []).append(record)
        for (bits, batch), members in groups.items():
            if len(members) > 1:
                found = break_even(members)
                name = f"{bits:g} bits" if bits else "exact pages"
                where = "at none of these lengths" if found is None else f"from about {found:.0f} tokens on"
                out.print(f"{name}, batch {batch}: faster than exact attention {where}")
    if output is not None:
        out.print(f"records: {output} (pqkv report {output} -o {output} derives CSV, Markdown and plots)")


def _cells(record: Record) -> list[str]:
    c, m = record.config, record.metrics
    ratio = m["speedup"]
    interval = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    exact = min((r for r in record.tables["contestants"] if r["name"] != "pqkv"), key=lambda r: r["median_ms"])
    fraction = m["bandwidth_fraction"].value or 0.0
    return [
        f"{c['bits']:g}" if c["bits"] else "exact",
        str(c["batch"]),
        str(c["context"]),
        f"{m['latency_ms'].value:.2f}",
        f"{m['exact_latency_ms'].value:.2f}",
        f"{ratio.value:.2f}x{interval}",
        exact["name"],
        f"{m['bandwidth_gbs'].value:.1f}",
        f"{fraction:.0%}",
    ]
