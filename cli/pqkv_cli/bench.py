"""`pqkv bench`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pqkv_cli.breakdown import breakdown_table
from pqkv_cli.end_to_end import end_to_end_table
from pqkv_cli.flags import layered, option, split_list
from pqkv_cli.options import (
    CACHE,
    Config,
    Fallback,
    Force,
    Format,
    Layout,
    PageSize,
    RecordFolder,
    Residual,
    SinkTokens,
)
from pqkv_cli.records import RecordFormat, gather, print_records, raise_if_failed

if TYPE_CHECKING:
    from pqkv.record import Record, RecordStore
    from pqkv_cli.progress import ProgressBar

_GRID, _SHAPE, _MEASURE = "Grid", "Attention", "Measuring"


def bench(
    lengths: Annotated[
        str | None,
        option("Tokens in the cache, by commas.", _GRID, "128,512,1024,2048,4096,8192,32768; end to end 1024,4096"),
    ] = None,
    batch: Annotated[str | None, option("Sequences at once, by commas.", _GRID, "1")] = None,
    bits: Annotated[
        str | None, option("Of 6, 4, 3, 2, 1.5 and 1 an element, by commas; 0 is the paged exact cache.", _GRID, "4,2")
    ] = None,
    num_subspaces: Annotated[int | None, option("Codes per vector, instead of --bits.", _GRID, False)] = None,
    nbits: Annotated[int | None, option("Bits of a code, with --num-subspaces.", _GRID, False)] = None,
    served: Annotated[
        str | None,
        option(
            "What recipe pqkv adds to a step, by commas: int8, frame, turning, gains, hadamard, universal; or none.",
            _GRID,
            "all of it",
        ),
    ] = None,
    ragged: Annotated[
        bool | None,
        option("Sequences of a batch from an eighth of the length up to it.", _GRID, "off", "--ragged/--equal"),
    ] = None,
    model: Annotated[
        str | None,
        option(
            "Heads as in llama-2-7b, llama-3.1-8b or tinyllama; end to end also 'reference' or a folder.", _SHAPE, False
        ),
    ] = None,
    heads: Annotated[int | None, option("Query heads.", _SHAPE, "32")] = None,
    kv_heads: Annotated[int | None, option("Key and value heads.", _SHAPE, "8")] = None,
    head_dim: Annotated[int | None, option("Elements of a head.", _SHAPE, "128")] = None,
    window: Annotated[int | None, option("Sliding window in tokens.", _SHAPE, "none")] = None,
    dtype: Annotated[
        str | None, option("Of query and exact parts: float32, bfloat16, float16.", _SHAPE, "float32")
    ] = None,
    page_size: PageSize = None,
    residual: Residual = None,
    sink_tokens: SinkTokens = None,
    key_layout: Layout = None,
    value_layout: Layout = None,
    backend: Annotated[
        str | None,
        option(
            "cuda, cuda-naive, cpu, cpu-bytes, cpu-8bit, cpu-centroids, cpu-tables, reference or auto.", CACHE, "auto"
        ),
    ] = None,
    device: Annotated[str | None, option("cpu or cuda.", CACHE, "where the backend runs")] = None,
    fallback: Fallback = None,
    whole: Annotated[
        bool | None,
        option(
            "Time a whole model: to the first token, and per token with real flushes.", _MEASURE, False, "--end-to-end"
        ),
    ] = None,
    parts: Annotated[
        bool | None,
        option("Time the parts of a step, and encoding, instead of a race.", _MEASURE, False, "--breakdown"),
    ] = None,
    new_tokens: Annotated[int | None, option("Tokens decoded end to end.", _MEASURE, "320")] = None,
    repeats: Annotated[int | None, option("Timed rounds of a cell.", _MEASURE, "21; end to end 3")] = None,
    threads: Annotated[int | None, option("Threads of everything that is timed.", _MEASURE, "as torch has")] = None,
    seed: Annotated[int | None, option("Of the random cache.", _MEASURE, "0")] = None,
    config: Config = None,
    output: RecordFolder = None,
    force: Force = False,
    format: Format = RecordFormat.table,
    static: Annotated[
        bool,
        option("Time nothing: compile the CUDA kernels, count, and predict by a model.", _MEASURE, False, "--static"),
    ] = False,
    gpu: Annotated[str | None, option("With --static: h100, h200 or a100.", _MEASURE, "h100")] = None,
) -> None:
    """Time decoding attention on codes beside the strongest exact attention of the same run.

    Every combination of shape, batch and length is a cell: first checked against the float64 reference, then timed with
    cold caches, all contestants in turn. --breakdown, --end-to-end and --static are other kinds of bench.
    """
    flags: dict[str, Any] = {
        "lengths": split_list(lengths, int, "--lengths"),
        "batch": split_list(batch, int, "--batch"),
        "bits": split_list(bits, float, "--bits"),
        "num_subspaces": num_subspaces,
        "nbits": nbits,
        "served": [] if served == "none" else split_list(served, str, "--served"),
        "ragged": ragged,
        "model": model,
        "end_to_end": whole,
        "breakdown": parts,
        "new_tokens": new_tokens,
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
        "device": device,
        "fallback": fallback,
        "repeats": repeats,
        "threads": threads,
        "seed": seed,
    }
    values, source = layered(config, flags)
    from pqkv.config import BenchConfig

    whole_model = bool(values.get("end_to_end"))
    _refuse_contradictions(values, static=static, gpu=gpu)
    if whole_model:
        values = {"repeats": 3, "lengths": (1024, 4096), **values}
    elif values.get("model") is not None:
        from pqkv.lm.shapes import heads_of

        values = {**heads_of(str(values["model"])), **values}
    wanted = BenchConfig.parse(values, source=source)
    if static:
        from pqkv_cli.static import static as print_static

        print_static(
            wanted, gpu or "h100", output, format.value, everything=not {"bits", "num_subspaces"} & set(values)
        )
        return

    def cells(store: RecordStore | None, bar: ProgressBar) -> Iterator[Record]:
        if wanted.breakdown:
            from pqkv.speed.breakdown import breakdown as measured
        elif whole_model:
            from pqkv.speed.end_to_end import end_to_end as measured
        else:
            from pqkv.speed.bench import bench as measured
        from pqkv_cli.first_compilation import first_compilation

        with first_compilation(bar.say):
            yield from measured(wanted, store, force=force, report=bar.show)

    records = gather(cells, output)
    table = breakdown_table if wanted.breakdown else end_to_end_table if whole_model else _table
    print_records(records, format, output, table)
    raise_if_failed(records)


def _refuse_contradictions(values: dict[str, Any], *, static: bool, gpu: str | None) -> None:
    """Raise `ConfigError` for settings that were given and would not be heeded."""
    from pqkv.errors import ConfigError

    def flag(name: str) -> str:
        return "--" + name.replace("_", "-")

    kinds = [flag(name) for name in ("breakdown", "end_to_end") if values.get(name)] + ["--static"] * static
    if len(kinds) > 1:
        raise ConfigError(f"{' and '.join(kinds)} are kinds of bench of their own; ask for one")
    if "bits" in values and {"num_subspaces", "nbits"} & set(values):
        raise ConfigError("--bits names code shapes, --num-subspaces with --nbits another one; give one or the other")
    if gpu is not None and not static:
        raise ConfigError("--gpu names the GPU that --static predicts for; nothing else heeds it")
    if not values.get("end_to_end"):
        if "new_tokens" in values:
            raise ConfigError("--new-tokens are decoded --end-to-end; nothing else heeds it")
        return
    own = [name for name in ("heads", "kv_heads", "head_dim", "window", "ragged") if name in values]
    if own:
        raise ConfigError(f"{flag(own[0])} does not go with --end-to-end: the model has its own heads and windows")


def _table(records: list[Record]) -> None:
    if not records:
        return
    from pqkv.report.series import machine_of
    from pqkv.speed.bench import break_even
    from pqkv_cli.output import console
    from pqkv_cli.table import print_lines, print_table

    out = console()
    first = records[0].config
    print_table(
        out,
        ("bits", "batch", "tokens", "ms", "exact ms", "speed-up", "charged", "fastest exact", "GB/s", "of copy"),
        map(_row, records),
        words=("fastest exact",),
        title=f"decoding attention, {first['model']}, backend {first['backend']}, {first['threads']} threads",
        caption=f"medians of {first['repeats']} cold runs, 95% intervals; exact: the fastest of torch's forms in "
        "the same rounds; charged: the speed-up with each step paying for the encoding of its own tokens; "
        f"of copy: bytes read a second over the copy bandwidth of this run; {machine_of(records[0])}",
    )
    groups: dict[tuple[float, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record.config["bits"], record.config["batch"]), []).append(record)
    for (bits, batch), members in groups.items():
        if len(members) > 1:
            found = break_even(members)
            name = f"{bits:g} bits" if bits else "exact pages"
            where = "at none of these lengths" if found is None else f"from about {found:.0f} tokens on"
            print_lines(out, f"{name}, batch {batch}: faster than exact attention {where}")


def _row(record: Record) -> list[str]:
    from pqkv.derived import derived

    c, m = record.config, record.metrics
    charged = derived(record).get("charged_speedup")
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
        "" if charged is None else f"{charged.value:.2f}x",
        exact["name"],
        f"{m['bandwidth_gbs'].value:.1f}",
        f"{fraction:.0%}",
    ]
