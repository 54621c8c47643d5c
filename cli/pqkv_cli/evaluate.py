"""`pqkv eval`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pqkv_cli.flags import layered, option, split_list

if TYPE_CHECKING:
    from pqkv.record import Record

_CODES, _CACHE, _TEXT, _MEASURE, _OUT = "Codes", "Cache", "Model and text", "Measuring", "Output"


class EvalFormat(StrEnum):
    """Output of `pqkv eval`."""

    table = "table"
    json = "json"
    csv = "csv"


def evaluate(
    codebooks: Annotated[
        str | None,
        option("Codebook files, by commas; absent: the default ones, trained once and kept.", _CODES, False),
    ] = None,
    bits: Annotated[str | None, option("Default codebooks of these bits; 0 is the exact cache.", _CODES, "4")] = None,
    scope: Annotated[str | None, option("Scope of the default codebooks.", _CODES, "head")] = None,
    model: Annotated[str | None, option("'reference', a transformers id or a folder.", _TEXT, "reference")] = None,
    dtype: Annotated[str | None, option("float32, float64, bfloat16 or float16.", _TEXT, "float32")] = None,
    device: Annotated[str | None, option("A torch device.", _TEXT, "cpu")] = None,
    device_map: Annotated[
        str | None, option("Spread the layers over all devices: auto, balanced, sequential.", _TEXT, False)
    ] = None,
    data: Annotated[
        str | None,
        option("stdlib, a file or folder (text, jsonl, parquet), wikitext2, ptb, c4 or pg19.", _TEXT, "stdlib"),
    ] = None,
    split: Annotated[str | None, option("calibration, test or all.", _TEXT, "test; all for files")] = None,
    allow_contaminated: Annotated[
        bool | None,
        option("Evaluate on text the codebooks were trained on, and record it.", _TEXT, False, "--allow-contaminated"),
    ] = None,
    paged: Annotated[
        bool | None,
        option("Pages from a pool, or one growing row a sequence.", _CACHE, "paged", "--paged/--contiguous"),
    ] = None,
    page_size: Annotated[int | None, option("Tokens in a page.", _CACHE, "64")] = None,
    residual: Annotated[int | None, option("Capacity of the exact window of newest tokens.", _CACHE, "128")] = None,
    sink_tokens: Annotated[int | None, option("First tokens that stay exact.", _CACHE, "4")] = None,
    key_layout: Annotated[str | None, option("row or transposed.", _CACHE, "transposed")] = None,
    value_layout: Annotated[str | None, option("row or transposed.", _CACHE, "transposed")] = None,
    max_pages: Annotated[int | None, option("Size of the page pool.", _CACHE, "grows")] = None,
    backend: Annotated[
        str | None, option("Attention on pages, in modes token and chunk: cpu, reference or auto.", _CACHE, "auto")
    ] = None,
    fallback: Annotated[
        bool | None,
        option(
            "Where a backend cannot run or pages run out, take the next choice and say so.",
            _CACHE,
            "on",
            "--fallback/--no-fallback",
        ),
    ] = None,
    context: Annotated[str | None, option("Window lengths in tokens, by commas.", _MEASURE, "512,2048")] = None,
    mode: Annotated[
        str | None,
        option("exact-schedule, token, chunk, all-coded, by commas.", _MEASURE, "exact-schedule"),
    ] = None,
    chunk_size: Annotated[int | None, option("Tokens a step in mode chunk.", _MEASURE, "256")] = None,
    windows: Annotated[
        str | None, option("Windows per context, spread evenly over the text, or 'all'.", _MEASURE, "8")
    ] = None,
    topk: Annotated[str | None, option("k of the agreement, by commas.", _MEASURE, "1,5,10")] = None,
    metrics: Annotated[
        str | None,
        option("perplexity, agreement, kld, recall, softmax-mass, by commas.", _MEASURE, "all"),
    ] = None,
    control: Annotated[
        bool | None,
        option("Also measure with the codes dealt to the wrong tokens.", _MEASURE, "off", "--control/--no-control"),
    ] = None,
    seed: Annotated[int | None, option("Of recall prompts and intervals.", _MEASURE, "0")] = None,
    config: Annotated[Path | None, option("TOML or JSON with the same keys; flags win.", _OUT, False)] = None,
    output: Annotated[
        Path | None,
        option("Folder for one record per cell; finished cells are not run again.", _OUT, False, "-o", "--output"),
    ] = None,
    force: Annotated[bool, option("Run cells that have a record again.", _OUT, False, "--force")] = False,
    format: Annotated[EvalFormat, option("What to print.", _OUT, "table")] = EvalFormat.table,
) -> None:
    """Measure what a coded, paged KV cache costs, beside the exact cache on the same windows.

    Every combination of codebooks, mode and context is a cell with a record of its own.
    """
    flags: dict[str, Any] = {
        "codebooks": split_list(codebooks, str, "--codebooks"),
        "bits": split_list(bits, float, "--bits"),
        "scope": scope,
        "model": model,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "data": data,
        "split": split,
        "allow_contaminated": allow_contaminated,
        "paged": paged,
        "page_size": page_size,
        "residual": residual,
        "sink_tokens": sink_tokens,
        "key_layout": key_layout,
        "value_layout": value_layout,
        "max_pages": max_pages,
        "backend": backend,
        "fallback": fallback,
        "context": split_list(context, int, "--context"),
        "mode": split_list(mode, str, "--mode"),
        "chunk_size": chunk_size,
        "windows": windows if windows is None or windows == "all" else split_list(windows, int, "--windows"),
        "topk": split_list(topk, int, "--topk"),
        "metrics": split_list(metrics, str, "--metrics"),
        "control": control,
        "seed": seed,
    }
    values, source = layered(config, flags)
    if isinstance(values.get("windows"), tuple) and len(values["windows"]) == 1:
        values["windows"] = values["windows"][0]
    from pqkv.config import EvalConfig

    wanted = EvalConfig.parse(values, source=source)
    records = _run(wanted, output, force)
    _print(records, format, output)
    failed = [record for record in records if record.status == "failed"]
    if failed:
        from pqkv.errors import PqkvError

        raise PqkvError(f"{len(failed)} of {len(records)} cells failed: {failed[0].error}")


def _run(wanted: Any, output: Path | None, force: bool) -> list[Record]:  # noqa: ANN401 - EvalConfig, imported late
    from pqkv.record import RecordStore
    from pqkv_cli.progress import ProgressBar

    store = RecordStore(output) if output is not None else None
    records = []
    with ProgressBar() as bar:
        bar.show("load model", 0, 1)
        from pqkv.quality.evaluate import Progress, evaluate

        def report(progress: Progress) -> None:
            number = f"cell {progress.cell} of {progress.cells}: " if progress.cells else ""
            bar.show(number + progress.stage, progress.done, progress.total)

        for record in evaluate(wanted, store, force=force, report=report):
            records.append(record)
            for note in record.notes:
                bar.say(f"note: {note}")
            if record.status == "failed":
                bar.say(f"failed: {record.error}")
    return records


def _print(records: list[Record], format: EvalFormat, output: Path | None) -> None:
    if format is EvalFormat.json:
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records], indent=1, allow_nan=False))
        return
    if format is EvalFormat.csv:
        from pqkv.report import to_frame

        typer.echo(to_frame(records).to_csv(index=False), nl=False)
        return
    from pqkv_cli.verdict import print_verdict

    print_verdict([record for record in records if record.status == "ok"])
    if output is not None:
        typer.echo(f"records: {output} (pqkv report {output} -o {output} derives CSV, Markdown and plots)")
