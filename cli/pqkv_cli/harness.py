"""`pqkv lm-eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from pqkv_cli.flags import option

HANDED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
_CODES = "Codes"


def lm_eval(
    context: typer.Context,
    control: Annotated[
        bool, option("Codes dealt to the wrong tokens: what measures anything collapses.", _CODES, "off", "--control")
    ] = False,
) -> None:
    """Run tasks of lm-evaluation-harness on coded caches; other options are those of `lm_eval run`.

    Model arguments: pretrained; codebooks (a file), bits (0: the exact cache)
    or codec; mode (exact-schedule, or all-coded with coded_sinks); page_size,
    residual, sink_tokens, dtype, device, max_length.

    Continuations are scored in one forward, as decoding token by token would
    see its cache; texts are generated on the real cache. Prompts of less than
    132 tokens code nothing by default and are refused: take
    mode=all-coded,coded_sinks=4, or --num_fewshot. The share of coded columns
    is told on the way and kept in the results (config, pqkv).

    pqkv_needle plants a word at five depths; longer texts by --metadata
    characters=20000 needles=50.

    RULER: --tasks ruler --metadata max_seq_lengths=[4096,8192] tokenizer=ID

    LongBench: --tasks longbench --model_args pretrained=ID,max_length=32768
    """
    from pqkv.harness.run import run

    run([*context.args, *(["--model_args", "control=True"] if control else [])])
