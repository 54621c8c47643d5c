"""`pqkv train-codebooks`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pqkv_cli.flags import layered, option, split_list
from pqkv_cli.options import (
    OUTPUT,
    TEXT,
    Bos,
    Config,
    Data,
    Device,
    DeviceMap,
    Dtype,
    Model,
    ParseSpecial,
    Rope,
    RopeFactor,
)
from pqkv_cli.output import console, echo
from pqkv_cli.table import print_table

_CODES, _CALIBRATION = "Codes", "Calibration"


def train_codebooks(
    output: Annotated[Path, option("Where the codebook file goes.", OUTPUT, False, "-o", "--output")],
    model: Model = None,
    bits: Annotated[float | None, option("Bits per element: 6, 4, 3, 2, 1.5 or 1.", _CODES, "4")] = None,
    num_subspaces: Annotated[int | None, option("Codes per vector (M), with --nbits.", _CODES, False)] = None,
    nbits: Annotated[int | None, option("Bits per code, 1 to 12.", _CODES, False)] = None,
    recipe: Annotated[
        str | None,
        option(
            "pqkv: mean of keys that turns, their queries' frame, gains of values; product: codes of vectors as they "
            "are; million: the report's.",
            _CODES,
            "pqkv",
        ),
    ] = None,
    codec: Annotated[
        str | None, option("A way of coding as pqkv eval --codec takes it, if it is one that is served.", _CODES, False)
    ] = None,
    key_layer_bits: Annotated[
        str | None, option("Bits of each coded layer's keys, by commas, as 3,4,4,6.", _CODES, "--bits everywhere")
    ] = None,
    value_layer_bits: Annotated[
        str | None, option("Bits of each coded layer's values, by commas.", _CODES, "--bits everywhere")
    ] = None,
    scope: Annotated[str | None, option("One codebook per head, layer or (product) global.", _CODES, "head")] = None,
    channels: Annotated[
        str | None,
        option(
            "Of recipe product. balanced: subspaces of like variance; adjacent: neighbours, as MILLION; opq: rotated.",
            _CODES,
            "balanced",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        option(
            "Of recipe product. Nearest key centroid: query (weighted by the queries' channels) or euclidean.",
            _CODES,
            "query",
        ),
    ] = None,
    init: Annotated[
        str | None,
        option(
            "Of recipe product. Where k-means begins: k-means++, or random as MILLION (FAISS).", _CODES, "k-means++"
        ),
    ] = None,
    iterations: Annotated[int | None, option("k-means iterations.", _CODES, "25")] = None,
    data: Data = None,
    split: Annotated[str | None, option("calibration, test or all.", TEXT, "calibration; all for files")] = None,
    bos: Bos = None,
    parse_special: ParseSpecial = None,
    samples: Annotated[int | None, option("Vectors per codebook, at most.", _CALIBRATION, "20480")] = None,
    calibration_tokens: Annotated[int | None, option("Tokens run through the model.", _CALIBRATION, "20480")] = None,
    context: Annotated[int | None, option("Length of a calibration window.", _CALIBRATION, "1024")] = None,
    positions: Annotated[
        int | None,
        option("Windows stand at positions up to this; keys past them are coded badly.", _CALIBRATION, "8192"),
    ] = None,
    leave_out: Annotated[
        int | None,
        option("First tokens of a window not learnt from: sinks that stay exact.", _CALIBRATION, "4, or 0 (product)"),
    ] = None,
    seed: Annotated[int | None, option("Of the sample and of k-means.", _CALIBRATION, "0")] = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    rope: Rope = None,
    rope_factor: RopeFactor = None,
    config: Config = None,
) -> None:
    """Train codebooks for a model on calibration text and write them, with their provenance, to one file."""
    flags: dict[str, Any] = {
        "model": model,
        "bits": bits,
        "num_subspaces": num_subspaces,
        "nbits": nbits,
        "recipe": recipe,
        "codec": codec,
        "key_layer_bits": split_list(key_layer_bits, float, "--key-layer-bits"),
        "value_layer_bits": split_list(value_layer_bits, float, "--value-layer-bits"),
        "scope": scope,
        "channels": channels,
        "metric": metric,
        "init": init,
        "iterations": iterations,
        "data": data,
        "split": split,
        "bos": bos,
        "parse_special": parse_special,
        "samples": samples,
        "calibration_tokens": calibration_tokens,
        "context": context,
        "positions": positions,
        "leave_out": leave_out,
        "seed": seed,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "rope": rope,
        "rope_factor": rope_factor,
    }
    values, source = layered(config, flags)
    from pqkv.codec.codebook_file import check_writable, save_codebooks
    from pqkv.config import TrainConfig
    from pqkv_cli.progress import ProgressBar

    wanted = TrainConfig.parse(values, source=source)
    check_writable(output)
    from pqkv.lm import load_model
    from pqkv.lm.rope_variant import rope_variant
    from pqkv.lm.train import memory_of_samples, recipe_options, train

    if wanted.codec:
        recipe_options(wanted)  # one that is not served is refused before a model is loaded

    with ProgressBar() as bar:
        bar.show("load model", 0, 1)
        lm = load_model(
            wanted.model, wanted.dtype, wanted.device, wanted.device_map, rope_variant(wanted.rope, wanted.rope_factor)
        )
    held = memory_of_samples(lm, wanted) / 2**30
    echo(
        f"{wanted.calibration_tokens:,} tokens of {lm.name}: keys and values take {held:.2f} GiB beside the model",
        stderr=True,
    )
    with ProgressBar() as bar:
        books, header = train(lm, wanted, bar.show)
    save_codebooks(output, books, header)

    print_table(
        console(),
        ("layer", "keys", "keys, queries' metric", "values"),
        [
            (str(layer), *(f"{error:.4f}" for error in (keys, in_metric, value)))
            for layer, ((keys, value), in_metric) in enumerate(zip(header.errors, header.query_errors, strict=True))
        ],
        title=f"{lm.name}: {books.code_bits:.3g} bits ({header.num_subspaces} x {header.nbits}), "
        f"recipe {header.recipe}, scope {header.scope}",
        caption="squared error of held-out vectors of the calibration split, over their squared distance to the mean",
    )
    text = header.calibration
    echo(
        f"{output}: {books.nbytes():,} bytes of codebooks, {header.samples:,} vectors of {text.tokens:,} tokens "
        f"({text.name}/{text.split}) at positions up to {text.reach:,}"
    )
