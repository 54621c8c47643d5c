"""`pqkv export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pqkv_cli.flags import layered, option, split_list
from pqkv_cli.options import (
    CACHE,
    OUTPUT,
    Bos,
    Chat,
    Config,
    Device,
    DeviceMap,
    Dtype,
    Layout,
    Model,
    PageSize,
    ParseSpecial,
    Prompt,
    PromptFile,
    Residual,
    SinkTokens,
)
from pqkv_cli.output import console, echo
from pqkv_cli.prompt import read_prompt

_CODES = "Codes"


def export(
    output: Annotated[Path, option("The safetensors file to write.", OUTPUT, False, "-o", "--output")],
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    chat: Chat = None,
    codebooks: Annotated[
        str | None, option("A codebook file; absent: the default ones, trained once and kept.", _CODES, False)
    ] = None,
    bits: Annotated[float | None, option("Default codebooks of these bits; 0 is exact pages.", _CODES, "4")] = None,
    recipe: Annotated[str | None, option("Of the default codebooks; see train-codebooks.", _CODES, "pqkv")] = None,
    model: Model = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    bos: Bos = None,
    parse_special: ParseSpecial = None,
    page_size: PageSize = None,
    residual: Residual = None,
    sink_tokens: SinkTokens = None,
    key_layout: Layout = None,
    value_layout: Layout = None,
    max_pages: Annotated[int | None, option("Size of the page pool.", CACHE, "grows")] = None,
    config: Config = None,
) -> None:
    """Write the cache of a prompt as one file: page table, codes, codebooks, for other programs to attend on.

    Pages are found by kv_indptr, kv_indices and last_page_len, as FlashInfer's are; the layout is stated in
    pqkv.cache.exported, and pqkv.cache.plain reads it in NumPy.
    """
    flags: dict[str, Any] = {
        "chat": chat,
        "codebooks": split_list(codebooks, str, "--codebooks"),
        "bits": None if bits is None else (bits,),
        "recipe": recipe,
        "model": model,
        "dtype": dtype,
        "device": device,
        "device_map": device_map,
        "bos": bos,
        "parse_special": parse_special,
        "page_size": page_size,
        "residual": residual,
        "sink_tokens": sink_tokens,
        "key_layout": key_layout,
        "value_layout": value_layout,
        "max_pages": max_pages,
    }
    values, source = layered(config, flags)
    from pqkv.config import GenerateConfig
    from pqkv.errors import ConfigError

    wanted = GenerateConfig.parse({**values, "tokens": 1}, source=source)
    if len(wanted.codebooks or wanted.bits) != 1:
        raise ConfigError("one cache is exported: give one codebook file, or --bits one number")
    text = read_prompt(prompt, prompt_file)
    from pqkv_cli.progress import ProgressBar

    with ProgressBar() as bar:
        bar.show("load model", 0, 1)
        from pqkv.generation import prepare
        from pqkv.generation.export import export as write

        session = prepare(wanted, text, bar.show, alone=True)
        bar.show("fill the cache", 0, 1)
        written = write(session, output)
    from pqkv_cli.table import print_pairs

    out = console()
    print_pairs(
        out,
        [
            (
                "tokens",
                f"{written.tokens}: {written.sinks} sinks, {written.in_pages} in pages, {written.residual} after",
            ),
            ("pages", f"{written.pages} of {wanted.page_size} tokens in {written.layers} layers"),
            ("bytes", f"{written.bytes:,}"),
        ],
    )
    echo(f"cache: {output} (pqkv.cache.plain.load_export reads it)")
