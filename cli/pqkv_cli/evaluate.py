"""`pqkv eval`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pqkv_cli.flags import layered, option, split_list
from pqkv_cli.options import (
    CACHE,
    OUTPUT,
    TEXT,
    Bos,
    Config,
    Data,
    Device,
    DeviceMap,
    Dtype,
    Fallback,
    Force,
    Format,
    Layout,
    Model,
    PageSize,
    ParseSpecial,
    RecordFolder,
    Residual,
    Rope,
    RopeFactor,
    SinkTokens,
)
from pqkv_cli.records import RecordFormat, gather, print_records, raise_if_failed

if TYPE_CHECKING:
    from pathlib import Path

    from pqkv.config import EvalConfig
    from pqkv.record import Record, RecordStore
    from pqkv_cli.progress import ProgressBar

_CODES, _MEASURE = "Codes", "Measuring"


def evaluate(
    codebooks: Annotated[
        str | None,
        option("Codebook files, folders or hub ids, by commas; absent: the default ones, trained once.", _CODES, False),
    ] = None,
    bits: Annotated[str | None, option("Default codebooks of these bits; 0 is the exact cache.", _CODES, "4")] = None,
    codec: Annotated[
        list[str] | None,
        option(
            "A way of coding by name, for both sides or KEYS/VALUES, such as kivi:bits=2; again for more. "
            "See pqkv codecs.",
            _CODES,
            False,
        ),
    ] = None,
    calibration_data: Annotated[str | None, option("Text that codecs learn from, as --data.", _CODES, "stdlib")] = None,
    calibration_tokens: Annotated[int | None, option("Tokens of it.", _CODES, "24576")] = None,
    recipe: Annotated[
        str | None, option("Of the default codebooks: pqkv, product or million; see train-codebooks.", _CODES, "pqkv")
    ] = None,
    scope: Annotated[str | None, option("Scope of the default codebooks.", _CODES, "head")] = None,
    model: Model = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    rope: Rope = None,
    rope_factor: RopeFactor = None,
    data: Data = None,
    split: Annotated[str | None, option("calibration, test or all.", TEXT, "test; all for files")] = None,
    bos: Bos = None,
    parse_special: ParseSpecial = None,
    chat: Annotated[
        bool | None,
        option(
            "Windows go through the model's chat template: half is asked, half answered, and the answer is scored.",
            TEXT,
            "off",
            "--chat/--no-chat",
        ),
    ] = None,
    allow_contaminated: Annotated[
        bool | None,
        option("Evaluate on text the codebooks were trained on, and record it.", TEXT, False, "--allow-contaminated"),
    ] = None,
    paged: Annotated[
        bool | None,
        option("Pages from a pool, or one growing row a sequence.", CACHE, "paged", "--paged/--contiguous"),
    ] = None,
    page_size: PageSize = None,
    residual: Residual = None,
    sink_tokens: SinkTokens = None,
    window: Annotated[
        int | None, option("A query sees the newest N tokens only; pages behind go back to the pool.", CACHE, False)
    ] = None,
    window_sinks: Annotated[
        int | None, option("First tokens that stay visible beside a window, or beside what --keep keeps.", CACHE, "0")
    ] = None,
    keep: Annotated[
        str | None,
        option("Of a prefill keep a share by attention-sum, recent or random (mode decode).", CACHE, False),
    ] = None,
    keep_share: Annotated[float | None, option("Share of the tokens that --keep keeps, as 0.25.", CACHE, False)] = None,
    key_layout: Layout = None,
    value_layout: Layout = None,
    max_pages: Annotated[int | None, option("Size of the page pool.", CACHE, "grows")] = None,
    backend: Annotated[
        str | None,
        option("Attention on pages, in modes token, chunk, decode: cpu, reference, auto, fault:NAME.", CACHE, "auto"),
    ] = None,
    fallback: Fallback = None,
    context: Annotated[str | None, option("Window lengths in tokens, by commas.", _MEASURE, "512,2048")] = None,
    mode: Annotated[
        str | None,
        option("exact-schedule, token, chunk, decode, all-coded, by commas.", _MEASURE, "exact-schedule"),
    ] = None,
    chunk_size: Annotated[int | None, option("Tokens a step in mode chunk.", _MEASURE, "256")] = None,
    decode_tokens: Annotated[
        int | None, option("Newest tokens of a window, taken one by one in mode decode.", _MEASURE, "64")
    ] = None,
    coded_sinks: Annotated[
        str | None, option("First tokens that stay exact in mode all-coded, by commas.", _MEASURE, "0")
    ] = None,
    score_after: Annotated[int | None, option("Score only positions from this one on.", _MEASURE, "0")] = None,
    noise_floor: Annotated[
        bool | None,
        option(
            "Also exact caches that differ by rounding alone: what nothing is told under.",
            _MEASURE,
            "off",
            "--noise-floor/--no-noise-floor",
        ),
    ] = None,
    by_layer: Annotated[
        bool | None,
        option("Also code one layer at a time, keys, values and both.", _MEASURE, "off", "--by-layer/--no-by-layer"),
    ] = None,
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
    recall_form: Annotated[
        str | None,
        option(
            "code: the numbers of five facts a window; word: the word of one, for models at large.",
            _MEASURE,
            "code",
        ),
    ] = None,
    seed: Annotated[int | None, option("Of recall prompts and intervals.", _MEASURE, "0")] = None,
    config: Config = None,
    output: RecordFolder = None,
    force: Force = False,
    plan: Annotated[
        bool, option("List the cells, their memory and their records; run nothing.", OUTPUT, False, "--plan")
    ] = False,
    format: Format = RecordFormat.table,
) -> None:
    """Measure what a coded, paged KV cache costs, beside the exact cache on the same windows.

    Every combination of codebooks, mode and context is a cell with a record of its own.
    """
    flags: dict[str, Any] = {
        "codebooks": split_list(codebooks, str, "--codebooks"),
        "bits": split_list(bits, float, "--bits"),
        "codec": tuple(codec) if codec else None,
        "calibration": calibration_of(calibration_data, calibration_tokens),
        "recipe": recipe,
        "scope": scope,
        "model": model,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "rope": rope,
        "rope_factor": rope_factor,
        "data": data,
        "split": split,
        "bos": bos,
        "parse_special": parse_special,
        "chat": chat,
        "allow_contaminated": allow_contaminated,
        "paged": paged,
        "page_size": page_size,
        "residual": residual,
        "sink_tokens": sink_tokens,
        "window": window,
        "window_sinks": window_sinks,
        "keep": keep,
        "keep_share": keep_share,
        "key_layout": key_layout,
        "value_layout": value_layout,
        "max_pages": max_pages,
        "backend": backend,
        "fallback": fallback,
        "context": split_list(context, int, "--context"),
        "mode": split_list(mode, str, "--mode"),
        "chunk_size": chunk_size,
        "decode_tokens": decode_tokens,
        "coded_sinks": split_list(coded_sinks, int, "--coded-sinks"),
        "score_after": score_after,
        "noise_floor": noise_floor,
        "by_layer": by_layer,
        "windows": windows if windows is None or windows == "all" else split_list(windows, int, "--windows"),
        "topk": split_list(topk, int, "--topk"),
        "metrics": split_list(metrics, str, "--metrics"),
        "control": control,
        "recall_form": recall_form,
        "seed": seed,
    }
    values, source = layered(config, flags)
    if isinstance(values.get("windows"), tuple) and len(values["windows"]) == 1:
        values["windows"] = values["windows"][0]
    from pqkv.config import EvalConfig

    wanted = EvalConfig.parse(values, source=source)
    from pqkv.quality.cells import check_something_coded

    check_something_coded(wanted)

    if plan:
        _print_plan(wanted, output, format)
        return

    def cells(store: RecordStore | None, bar: ProgressBar) -> Iterator[Record]:
        bar.show("load model", 0, 1)
        from pqkv.quality.evaluate import Progress, evaluate

        def report(progress: Progress) -> None:
            number = f"cell {progress.cell} of {progress.cells}: " if progress.cells else ""
            bar.show(number + progress.stage, progress.done, progress.total)

        return evaluate(wanted, store, force=force, report=report)

    records = gather(cells, output)
    print_records(records, format, output, _table)
    raise_if_failed(records)


def calibration_of(data: str | None, tokens: int | None) -> dict[str, Any] | None:
    """The settings of a calibration that flags give."""
    given = {"data": data, "calibration_tokens": tokens}
    return {key: value for key, value in given.items() if value is not None} or None


def _print_plan(wanted: EvalConfig, output: Path | None, format: RecordFormat) -> None:
    from pqkv.lm import load_model
    from pqkv.lm.rope_variant import rope_variant
    from pqkv.quality.plan import plan
    from pqkv.record import RecordStore
    from pqkv_cli.memory_plan import print_plan
    from pqkv_cli.progress import ProgressBar

    with ProgressBar() as bar:
        bar.show("load model", 0, 1)
        lm = load_model(
            wanted.model, wanted.dtype, wanted.device, wanted.device_map, rope_variant(wanted.rope, wanted.rope_factor)
        )
        planned = plan(wanted, lm, RecordStore(output) if output else None)
    print_plan(planned, format)


def _table(records: list[Record]) -> None:
    from pqkv_cli.verdict import print_verdict

    print_verdict(records)
