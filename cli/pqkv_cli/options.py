"""Options that several commands share: one declaration, one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pqkv_cli.flags import option
from pqkv_cli.records import RecordFormat

CACHE, TEXT, OUTPUT, PROMPT = "Cache", "Model and text", "Output", "Prompt"

Prompt = Annotated[str | None, option("The text to begin with.", PROMPT, "standard input", "-p", "--prompt")]
PromptFile = Annotated[Path | None, option("A file with it.", PROMPT, False)]
Chat = Annotated[
    bool | None,
    option("It is a message: the model's chat template is put around it.", PROMPT, "off", "--chat/--no-chat"),
]
PageSize = Annotated[int | None, option("Tokens in a page.", CACHE, "64")]
Residual = Annotated[int | None, option("Capacity of the exact window of newest tokens.", CACHE, "128")]
SinkTokens = Annotated[int | None, option("First tokens that stay exact.", CACHE, "4")]
Layout = Annotated[str | None, option("row or transposed.", CACHE, "transposed")]
Fallback = Annotated[
    bool | None,
    option(
        "Where a backend cannot run or pages run out, take the next choice and say so.",
        CACHE,
        "on",
        "--fallback/--no-fallback",
    ),
]
Model = Annotated[
    str | None,
    option("A name that `pqkv models` lists, a folder, a .gguf file or a transformers id.", TEXT, "reference"),
]
Dtype = Annotated[str | None, option("float32, float64, bfloat16 or float16.", TEXT, "float32")]
Device = Annotated[str | None, option("A torch device.", TEXT, "cpu")]
DeviceMap = Annotated[
    str | None, option("Spread the layers over all devices: auto, balanced, sequential.", TEXT, False)
]
Rope = Annotated[
    str | None,
    option("Rotary embedding in place of the model's own: linear, ntk or yarn, with --rope-factor.", TEXT, "default"),
]
RopeFactor = Annotated[float | None, option("Times the trained positions that --rope reaches.", TEXT, False)]
Data = Annotated[
    str | None,
    option(
        "stdlib, a file or folder (text, jsonl, json, csv, parquet, arrow; compressed too), wikitext2, ptb, c4, pg19.",
        TEXT,
        "stdlib",
    ),
]
Bos = Annotated[
    str | None,
    option(
        "Begin every window with the beginning-of-sequence token: auto (as the tokenizer does), always, never.",
        TEXT,
        "auto",
    ),
]
ParseSpecial = Annotated[
    bool | None,
    option(
        "Make control tokens of strings in the text that spell them.", TEXT, "off", "--parse-special/--no-parse-special"
    ),
]
Config = Annotated[Path | None, option("TOML or JSON with the same keys; flags win.", OUTPUT, False)]
RecordFolder = Annotated[
    Path | None,
    option("Folder for one record per cell; finished cells are not run again.", OUTPUT, False, "-o", "--output"),
]
Force = Annotated[bool, option("Run cells that have a record again.", OUTPUT, False, "--force")]
Format = Annotated[RecordFormat, option("What to print.", OUTPUT, "table")]
