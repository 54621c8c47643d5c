"""`pqkv train-codebooks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pqkv_cli.flags import layered

_CODES, _TEXT = "Codes", "Calibration"


def train_codebooks(
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the codebook file goes.", show_default=False)],
    model: Annotated[
        str | None, typer.Option(help="'reference', a transformers id or a folder.", show_default="reference")
    ] = None,
    bits: Annotated[
        float | None,
        typer.Option(help="Bits per element: 4, 3, 2, 1.5 or 1.", rich_help_panel=_CODES, show_default="4"),
    ] = None,
    num_subspaces: Annotated[
        int | None, typer.Option(help="Codes per vector (M), with --nbits.", rich_help_panel=_CODES, show_default=False)
    ] = None,
    nbits: Annotated[
        int | None, typer.Option(help="Bits per code, 1 to 12.", rich_help_panel=_CODES, show_default=False)
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(help="One codebook per head, layer or global.", rich_help_panel=_CODES, show_default="head"),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            help="balanced: subspaces of like variance; adjacent: neighbouring channels, as MILLION.",
            rich_help_panel=_CODES,
            show_default="balanced",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Nearest key centroid: query (weighted by the queries' channels) or euclidean.",
            rich_help_panel=_CODES,
            show_default="query",
        ),
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(help="k-means iterations.", rich_help_panel=_CODES, show_default="25")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="stdlib, a file or folder (text, jsonl, parquet), wikitext2, ptb, c4 or pg19.",
            rich_help_panel=_TEXT,
            show_default="stdlib",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="calibration, test or all.", rich_help_panel=_TEXT, show_default="calibration; all for files"
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Vectors per codebook.", rich_help_panel=_TEXT, show_default="16384")
    ] = None,
    calibration_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens run through the model.", rich_help_panel=_TEXT, show_default="65536"),
    ] = None,
    context: Annotated[
        int | None, typer.Option(help="Length of a calibration window.", rich_help_panel=_TEXT, show_default="4096")
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float64, bfloat16 or float16.", show_default="float32")
    ] = None,
    device: Annotated[str | None, typer.Option(help="A torch device.", show_default="cpu")] = None,
    device_map: Annotated[
        str | None, typer.Option(help="Spread the layers over all devices: auto, balanced, sequential.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="TOML or JSON with the same keys; flags win.", show_default=False)
    ] = None,
) -> None:
    """Train codebooks for a model on calibration text and write them, with their provenance, to one file."""
    flags: dict[str, Any] = {
        "model": model,
        "bits": bits,
        "num_subspaces": num_subspaces,
        "nbits": nbits,
        "scope": scope,
        "channels": channels,
        "metric": metric,
        "iterations": iterations,
        "data": data,
        "split": split,
        "samples": samples,
        "calibration_tokens": calibration_tokens,
        "context": context,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
    }
    values, source = layered(config, flags)
    from pqkv.codec.codebook_file import check_writable, save_codebooks
    from pqkv.config import TrainConfig
    from pqkv_cli.progress import ProgressBar

    wanted = TrainConfig.parse(values, source=source)
    check_writable(output)
    from pqkv.lm import load_model
    from pqkv.lm.train import train

    with ProgressBar() as bar:
        bar.show("load model", 0, 1)
        lm = load_model(wanted.model, wanted.dtype, wanted.device, wanted.device_map)
        books, header = train(lm, wanted, bar.show)
    save_codebooks(output, books, header)

    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=box.SIMPLE,
        width=76,
        title=f"{lm.name}: {books.code_bits:g} bits ({header.num_subspaces} x {header.nbits}), scope {header.scope}",
        caption="relative squared error on held-out vectors of the calibration split",
    )
    for name in ("layer", "keys", "values"):
        table.add_column(name, justify="right")
    for layer, (keys, values_error) in enumerate(header.errors):
        table.add_row(str(layer), f"{keys:.4f}", f"{values_error:.4f}")
    console = Console()
    console.print(table)
    text = header.calibration
    console.print(
        f"{output}: {books.nbytes():,} bytes of centroids, {header.samples:,} vectors of {text.tokens:,} tokens "
        f"({text.name}/{text.split})",
        highlight=False,
        soft_wrap=True,
    )
