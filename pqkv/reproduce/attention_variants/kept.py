"""Part f: a share of a prompt kept, by attention, the newest or by chance; as keys and values leave the cache, and as
the lesson's listing has it: tokens leave the prompt and the rest is run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache

from pqkv.lm import LanguageModel, attach, load_model
from pqkv.lm.keep import Keeper, attention_sums
from pqkv.lm.layers import layer_plan
from pqkv.lm.one_forward import OneForwardLayer
from pqkv.lm.plugin import Attended, View, exact_attention
from pqkv.quality.cell_run import Shared
from pqkv.quality.evaluate import evaluate
from pqkv.quality.measures import compare
from pqkv.quality.modes import exact_states
from pqkv.quality.summary import summarize
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.attention_variants.settings import Settings
from pqkv.reproduce.attention_variants.windows import TEXT, cell_rows, interval, text_config, text_windows
from pqkv.reproduce.paired import paired_ratio
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, held, lines, of_kind, plot

AGAIN = "attention-prompt-cut"
POLICIES = ("attention-sum", "recent", "random")
FIRST = 4  # first tokens that stay in every policy: without them a real model says nothing of use
_HALF_PRECISION = 16  # bits an element has in the caches people run: what kept tokens take


def part_f(settings: Settings, request: Request) -> Iterator[Record]:
    """Each policy at each share; all tokens, and the larger share of them, in codes; the prompt cut and run again."""
    lm = load_model(settings.model)
    shared = Shared(lm)
    decode: dict[str, Any] = {
        "mode": ("decode",),
        "context": (settings.kept_context,),
        "windows": settings.kept_windows,
    }
    for share in settings.keep_shares:
        for policy in POLICIES:
            request.report(f"f: {settings.model}, {policy}, {share:g}", 0, 1)
            config = text_config(settings, **decode, bits=(0,), keep=policy, keep_share=share, window_sinks=FIRST)
            yield from evaluate(config, request.store, force=request.force, shared=shared)
    for bits in settings.kept_bits:
        request.report(f"f: {settings.model}, {bits:g} bits", 0, 1)
        for more in ({}, {"keep": POLICIES[0], "keep_share": max(settings.keep_shares), "window_sinks": FIRST}):
            config = text_config(settings, **decode, **more, bits=(bits,))
            yield from evaluate(config, request.store, force=request.force, shared=shared)
    for share in settings.keep_shares:
        request.report(f"f: {settings.model}, prompt cut to {share:g} and run again", 0, 1)
        about = {
            "part": "f", "model": settings.model, "model_weights": lm.fingerprint, "data": TEXT, "keep_share": share,
            "context": settings.kept_context, "windows": settings.kept_windows, "seed": settings.seed,
        }  # fmt: skip
        yield part_cell(AGAIN, about, partial(_run_again, lm, settings, share), request)


class _Sums(Cache):
    """One forward that adds up what each token got of the attention of all rows, heads and layers."""

    def __init__(self, lm: LanguageModel) -> None:
        plan = layer_plan(lm.model.config)
        self.coded_layers, self.attended = plan.coded, Attended()
        self.sums: Tensor | None = None
        super().__init__(layers=plan.build(lambda _: _SumLayer(self)))


class _SumLayer(OneForwardLayer):
    def __init__(self, owner: _Sums) -> None:
        super().__init__(owner.attended)
        self.owner = owner

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[View, View]:
        view = _SumView(self.owner, key_states, value_states)
        return view, view


class _SumView(View):
    def __init__(self, owner: _Sums, keys: Tensor, values: Tensor) -> None:
        super().__init__(owner.attended)
        self.owner, self.keys, self.values = owner, keys, values

    def attend(
        self, module: nn.Module, query: Tensor, mask: Tensor | None, *, scale: float, window: int | None
    ) -> Tensor:
        sums = attention_sums(query[0], self.keys[0], scale).sum(0)
        self.owner.sums = sums if self.owner.sums is None else self.owner.sums + sums
        return exact_attention(module, query, self.keys, self.values, mask, scale)


def important(lm: LanguageModel, ids: Tensor, share: float) -> Tensor:
    """Which tokens of ids (1, n) stay of a prompt, in order: as `Keeper` chooses, by the attention of all layers."""
    attach(lm.model)
    cache = _Sums(lm)
    lm.states(ids, cache, newest=1)
    assert cache.sums is not None
    keeper = Keeper("attention-sum", share, FIRST)
    return keeper.by_merit(cache.sums[None], keeper.count(ids.shape[1]))[0]


def _run_again(lm: LanguageModel, settings: Settings, share: float) -> dict[str, Any]:
    """The newest tokens after the prompt that is left: positions close up, and every layer sees the rest alone."""
    attach(lm.model)
    measures = []
    newest = settings.decode_tokens
    for window in text_windows(lm, settings.kept_context + 1, settings.kept_windows):
        ids, targets = window[None, :-1], window[-newest:]
        exact = exact_states(lm, ids, newest)[0]
        prompt = ids[:, :-newest]
        left = prompt[:, important(lm, prompt, share)]
        found = lm.states(torch.cat([left, ids[:, -newest:]], 1), DynamicCache(config=lm.model.config), newest=newest)[
            0
        ]
        measures.append(compare(exact, found, targets, (1,), lm.head))
    metrics = summarize(measures, ("perplexity", "agreement", "kld"), settings.seed)
    return {"metrics": metrics, "samples": {"kld_mean": [float(m.kld.mean()) for m in measures]}}


def kept_rows(records: Sequence[Record]) -> list[Row]:
    """Cells of mode decode that keep a share of a prompt, or all of it in codes, and prompts that were run again."""
    cells = [
        r for r in of_kind(records, "eval")
        if r.config["mode"] == "decode" and r.config["data"] == TEXT and not r.config.get("window")
    ]  # fmt: skip
    rows = [row | {"way": _way(row)} for row in cell_rows(cells)]
    for record in of_kind(records, AGAIN):
        c, found = record.config, record.metrics
        row: Row = {key: c[key] for key in ("model", "context", "windows", "keep_share")}
        row |= {"bits": 0.0, "keep": "attention-sum", "window": None, "sinks": FIRST, "way": "prompt cut and run again"}
        for name in ("perplexity_ratio", "kld_mean"):
            row |= {name: found[name].value, **interval(name, found[name])}
        rows.append(row | {"record": record.digest})
    return [row | {"bytes_of_half_precision": _share(row)} for row in rows]


def _way(row: Row) -> str:
    kept = f"{row['keep']}" if row["keep"] else "all tokens"
    return f"{kept}, {row['bits']:.3g} bits" if row["bits"] else kept


def _share(row: Row) -> float:
    """Bytes of a token's keys and values over those of every token in half precision, codes alone."""
    return float((row["keep_share"] or 1.0) * (row["bits"] or _HALF_PRECISION) / _HALF_PRECISION)


def finding_f(records: Sequence[Record]) -> list[Row]:
    """Whether importance is worth its name, and what codes of as many bytes lose. KLDs are of the same windows, and
    compared pair by pair.
    """
    result = []
    rows, by_digest = kept_rows(records), {record.digest: record for record in records}

    def times(over: Row, under: Row) -> tuple[float, float, float]:
        return paired_ratio(by_digest[over["record"]], by_digest[under["record"]])

    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model]
        at = {(row["way"], row["keep_share"]): row for row in own}
        for share in sorted({row["keep_share"] for row in own if row["keep_share"]}, reverse=True):
            if any((policy, share) not in at for policy in POLICIES):
                continue
            kept, *others = (at[policy, share] for policy in POLICIES)
            over = [times(kept, other) for other in others]
            said = ", ".join(f"{_times(found)} of {row['way']}'s" for found, row in zip(over, others, strict=True))
            better, worse = all(high < 1 for *_, high in over), any(low > 1 for _, low, _ in over)
            result.append(claim(f"importance says what to keep, {share:.0%} of a prompt", "most important tokens",
                                f"KLD of attention-sum {_nats(kept)}, {said}; each with the first {FIRST} tokens and "
                                "half the newest", held(inside=better, outside=worse), model))  # fmt: skip
            if again := at.get(("prompt cut and run again", share)):
                found = times(again, kept)
                text = f"dropping tokens of the prompt is dropping their keys and values, {share:.0%}"
                said = f"KLD {_nats(again)} run again, {_times(found)} of what it is as keys and values leave the cache"
                result.append(claim(text, "compress_context", said,
                                    held(inside=False, outside=found[1] > 1 or found[2] < 1), model))  # fmt: skip
            # all tokens in codes of no more bytes than that share of them in half precision
            codes = [row for row in own if not row["keep"] and row["bits"] and _share(row) <= share * 1.05]
            if codes:
                near = max(codes, key=lambda row: row["bits"])
                best = min((kept, *others), key=lambda row: float(row["kld_mean"]))
                found = times(best, near)
                said = (
                    f"all tokens in {near['bits']:.3g} bits ({_share(near):.0%} of half precision): KLD {_nats(near)}; "
                    f"the best policy ({best['way']}) loses {_times(found)} of that"
                )
                result.append(claim(f"keeping {share:.0%} of the tokens is the way to so many bytes", "compression",
                                    said, held(inside=found[2] < 1, outside=found[1] > 1), model))  # fmt: skip
    return result


def _times(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.2g} times [{low:.2g}, {high:.2g}]" if low else f"{value:.2g} times"


def _nats(row: Row) -> str:
    return f"{row['kld_mean']:.2g} [{row['kld_mean_low']:.2g}, {row['kld_mean_high']:.2g}] nats"


def plots_f(records: Sequence[Record]) -> list[Plot]:
    """KLD against bytes."""
    drawn = lines(kept_rows(records), lambda row: f"{row['model']}, {row['context']:,} tokens", "way",
                  "bytes_of_half_precision", "kld_mean")  # fmt: skip
    labels = ("bytes over those of all tokens in half precision", "mean KL divergence (nats)")
    return [plot("f_kept", "A share of a prompt, or all of it in codes", labels, drawn, "way", log_x=True, log_y=True)]
