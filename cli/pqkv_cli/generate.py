"""`pqkv generate`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pqkv_cli.flags import layered, option, split_list
from pqkv_cli.options import (
    CACHE,
    PROMPT,
    Bos,
    Chat,
    Config,
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
    Prompt,
    PromptFile,
    RecordFolder,
    Residual,
    Rope,
    RopeFactor,
    SinkTokens,
)
from pqkv_cli.prompt import read_prompt
from pqkv_cli.records import RecordFormat, gather, print_records, raise_if_failed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pqkv.config import GenerateConfig
    from pqkv.generation import Session
    from pqkv.record import Record, RecordStore
    from pqkv_cli.progress import ProgressBar

_CODES = "Codes"


def generate(
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    chat: Chat = None,
    tokens: Annotated[int | None, option("Tokens to write, at most.", PROMPT, "256")] = None,
    ignore_end: Annotated[
        bool | None, option("Go on past the token with which the model ends.", PROMPT, False, "--ignore-end")
    ] = None,
    temperature: Annotated[
        float | None, option("0: the likeliest token; above: drawn, by the same numbers on every cache.", PROMPT, "0")
    ] = None,
    seed: Annotated[int | None, option("Of what is drawn.", PROMPT, "0")] = None,
    codebooks: Annotated[
        str | None,
        option("Codebook files, by commas; absent: the default ones, trained once and kept.", _CODES, False),
    ] = None,
    bits: Annotated[str | None, option("Default codebooks of these bits; 0 is exact pages.", _CODES, "4")] = None,
    recipe: Annotated[str | None, option("Of the default codebooks; see train-codebooks.", _CODES, "pqkv")] = None,
    scope: Annotated[str | None, option("Scope of the default codebooks.", _CODES, "head")] = None,
    codec: Annotated[
        list[str] | None, option("A way of coding by name, again for more; see pqkv codecs.", _CODES, False)
    ] = None,
    model: Model = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    rope: Rope = None,
    rope_factor: RopeFactor = None,
    bos: Bos = None,
    parse_special: ParseSpecial = None,
    paged: Annotated[
        bool | None,
        option("Pages from a pool, or one growing row a sequence.", CACHE, "paged", "--paged/--contiguous"),
    ] = None,
    page_size: PageSize = None,
    residual: Residual = None,
    sink_tokens: SinkTokens = None,
    window: Annotated[
        int | None, option("Coded caches see the newest N tokens only; pages behind go back.", CACHE, False)
    ] = None,
    window_sinks: Annotated[int | None, option("First tokens that stay visible beside a window.", CACHE, "0")] = None,
    key_layout: Layout = None,
    value_layout: Layout = None,
    max_pages: Annotated[int | None, option("Size of the page pool.", CACHE, "grows")] = None,
    backend: Annotated[str | None, option("Attention on pages: cpu, cuda, reference, auto.", CACHE, "auto")] = None,
    fallback: Fallback = None,
    config: Config = None,
    output: RecordFolder = None,
    force: Force = False,
    format: Format = RecordFormat.table,
) -> None:
    """Write from one prompt on the exact cache and on coded ones: text, tokens a second, bytes, where they part.

    Every cache writes alone, after the same prompt; the exact one is transformers' DynamicCache.
    """
    flags: dict[str, Any] = {
        "chat": chat,
        "tokens": tokens,
        "ignore_end": ignore_end,
        "temperature": temperature,
        "seed": seed,
        "codebooks": split_list(codebooks, str, "--codebooks"),
        "bits": split_list(bits, float, "--bits"),
        "recipe": recipe,
        "scope": scope,
        "codec": tuple(codec) if codec else None,
        "model": model,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "rope": rope,
        "rope_factor": rope_factor,
        "bos": bos,
        "parse_special": parse_special,
        "paged": paged,
        "page_size": page_size,
        "residual": residual,
        "sink_tokens": sink_tokens,
        "window": window,
        "window_sinks": window_sinks,
        "key_layout": key_layout,
        "value_layout": value_layout,
        "max_pages": max_pages,
        "backend": backend,
        "fallback": fallback,
    }
    values, source = layered(config, flags)
    from pqkv.config import GenerateConfig

    wanted = GenerateConfig.parse(values, source=source)
    asked = read_prompt(prompt, prompt_file)
    session = _prepared(wanted, asked)
    records = _told(session, output, force) if format is RecordFormat.table else _silent(session, output, force)
    print_records(records, format, output, lambda found: _tables(session, found))
    raise_if_failed(records)


def _prepared(wanted: GenerateConfig, prompt: str) -> Session:
    from pqkv_cli.progress import ProgressBar

    with ProgressBar() as bar:
        bar.show("load model", 0, 1)
        from pqkv.generation import prepare

        return prepare(wanted, prompt, bar.show)


def _told(session: Session, output: Path | None, force: bool) -> list[Record]:
    """Records; what is written goes to standard output as it is written."""
    from pqkv.record import RecordStore
    from pqkv_cli.generate_tables import Teller

    store = RecordStore(output) if output is not None else None
    if store is not None:
        store.check_writable()
    teller, records = Teller(session), []
    for record in session.records(store, force=force, heard=teller.hear):
        teller.finish(record)
        records.append(record)
    return records


def _silent(session: Session, output: Path | None, force: bool) -> list[Record]:
    """Records; progress goes to standard error."""

    def cells(store: RecordStore | None, bar: ProgressBar) -> Iterator[Record]:
        written: dict[str, int] = {}

        def heard(name: str, piece: str) -> None:
            written[name] = written.get(name, 0) + len(piece.split())
            bar.show(f"write on {name}", min(written[name], session.config.tokens), session.config.tokens)

        if store is not None:
            store.check_writable()
        return session.records(store, force=force, heard=heard)

    return gather(cells, output)


def _tables(session: Session, records: list[Record]) -> None:
    from pqkv_cli.generate_tables import print_summary

    print_summary(session, records)
