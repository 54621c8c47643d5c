"""Part d: what a model loses through a window, with first tokens beside it and without, exact and coded; and what the
pages of one take at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pqkv.cache.table import UNUSED
from pqkv.config import CacheConfig, EvalConfig
from pqkv.lm import LanguageModel, PQKVCache, load_model
from pqkv.lm.tokens import token_form, token_stream
from pqkv.quality.cell_run import Shared
from pqkv.quality.evaluate import evaluate
from pqkv.quality.modes import coded_states
from pqkv.quality.recall import DEPTHS
from pqkv.record import Metric, Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.attention_variants.settings import Settings
from pqkv.reproduce.paired import paired_ratio
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import NO_CLAIM, Row, claim, held, lines, newest, of_kind, plot, table_rows
from pqkv.text import load_corpus, windows

BOUND = "attention-window-pages"
TEXT = "stdlib"
SINKS = (0, 4)
AT_ONCE = 8  # the pages of a window are looked at over so many times its length
CLOSE = 1e-3  # of the largest logit: two orders of float32 sums


def part_d(settings: Settings, request: Request) -> Iterator[Record]:
    """Every window with and without first tokens, and the pages of the shortest."""
    lm = load_model(settings.model)
    shared = Shared(lm)
    for window in settings.windows:
        for sinks in SINKS:
            if window < settings.text_context:
                request.report(f"d: {settings.model}, window {window} + {sinks}", 0, 1)
                config = text_config(
                    settings, mode=("exact-schedule",), bits=tuple(settings.window_bits), window=window,
                    window_sinks=sinks,
                )  # fmt: skip
                yield from evaluate(config, request.store, force=request.force, shared=shared)
    request.report(f"d: {settings.model}, pages", 0, 1)
    window = min(settings.windows)
    about = {"part": "d", "model": lm.name, "model_weights": lm.fingerprint, "window": window, "seed": settings.seed}
    yield part_cell(BOUND, about, partial(_pages, lm, window), request)


def text_config(settings: Settings, **more: Any) -> EvalConfig:  # noqa: ANN401 - what EvalConfig takes
    """An evaluation of the model on the bundled text, as all parts that ask one run it."""
    values = {
        "model": settings.model, "data": TEXT, "context": (settings.text_context,), "windows": settings.text_windows,
        "metrics": ("perplexity", "agreement", "kld", "recall"), "recall_form": settings.recall_form,
        "seed": settings.seed,
    }  # fmt: skip
    return EvalConfig.parse(values | more, source="experiment attention-variants")


def text_windows(lm: LanguageModel, length: int, count: int) -> torch.Tensor:
    """Token ids (count, length) of the bundled text, spread evenly."""
    stream = token_stream(lm, load_corpus(TEXT, None, default="test"), token_form(lm, "auto", parse_special=False))
    return torch.from_numpy(windows(stream, length, count).tokens).to(lm.device)


def _pages(lm: LanguageModel, window: int) -> dict[str, Any]:
    """Token by token through pages, eight times the window long: the most pages that a sequence held after any step,
    and how far its logits are from one forward under a mask.
    """
    config = CacheConfig(window=window, window_sinks=4)
    ids = text_windows(lm, AT_ONCE * window, 1)
    cache, most, states = PQKVCache(lm.model.config, None, config), 0, []
    for i in range(ids.shape[1]):
        states.append(lm.states(ids[:, i : i + 1], cache))
        assert cache.kv is not None
        most = max(most, sum(page != UNUSED for page in cache.kv.table.pages(0)))
    paged = lm.head(torch.cat(states, 1)[:, -window:])
    masked = lm.head(coded_states(lm, ids, None, config, "exact-schedule")[:, -window:])
    assert cache.kv is not None
    row = {
        "tokens": ids.shape[1], "page_size": config.page_size, "most_pages": most,
        "bound": -(-window // config.page_size) + 2, "bytes": cache.kv.memory().total,
    }  # fmt: skip
    gap = float((paged - masked).abs().max() / masked.abs().max())
    return {"metrics": {}, "tables": {"pages": [row | {"logit_gap": gap}]}}


def window_rows(records: Sequence[Record]) -> list[Row]:
    """One row for each evaluated cell with a window."""
    return cell_rows([record for record in of_kind(records, "eval") if record.config.get("window")])


def cell_rows(records: Sequence[Record]) -> list[Row]:
    """Rows of evaluated cells, whatever they see of their past."""
    rows = []
    for record in records:
        c, m = record.config, record.metrics
        row: Row = {
            "model": c["model"], "context": c["context"], "windows": c["windows"], "bits": c["bits"],
            "window": c.get("window"), "keep": c.get("keep"), "keep_share": c.get("keep_share"),
            "sinks": c.get("window_sinks", 0),
        }  # fmt: skip
        for name in ("perplexity_ratio", "kld_mean", "recall", "recall_exact"):
            found = m.get(name, Metric(value=None))
            row |= {name: found.value, **interval(name, found)}
        rows.append(row | {"cache_bytes": m["cache_bytes"].value, "record": record.digest})
    return newest(rows, "model", "context", "bits", "keep", "keep_share", "window", "sinks", most="windows")


def interval(name: str, found: Metric) -> Row:
    """Everything, of what a single window cannot say."""
    known = found.low is not None and found.high is not None
    low, high = (found.low, found.high) if known else (0.0, math.inf) if found.value is not None else (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def depth_rows(records: Sequence[Record]) -> list[Row]:
    """Recall by depth of each windowed cell."""
    rows = []
    wanted = {row["record"] for row in window_rows(records)}
    for row in table_rows([r for r in records if r.digest in wanted], "eval", "by_depth"):
        kept = ("model", "context", "bits", "window", "depth", "questions", "recall", "recall_exact")
        rows.append({key: row[key] for key in kept} | {"sinks": row.get("window_sinks", 0)})
    return newest(rows, "model", "context", "bits", "window", "sinks", "depth")


def finding_d(records: Sequence[Record]) -> list[Row]:
    """Whether quality hangs on the window, as the lesson's table says, and what else it hangs on."""
    result = []
    rows, depths = window_rows(records), depth_rows(records)
    by_digest = {record.digest: record for record in records}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = [row for row in rows if row["model"] == model and not row["bits"]]
        if not own:
            continue
        context = max(row["context"] for row in own)
        own = [row for row in own if row["context"] == context]
        at = {(row["window"], row["sinks"]): row for row in own}
        sizes = sorted({row["window"] for row in own})
        kept = [size for size in sizes if (size, SINKS[0]) in at and (size, SINKS[1]) in at]
        if not kept:
            continue
        for sinks in SINKS:
            said = ", ".join(f"{n:,}: {_change(at[n, sinks])}" for n in kept)
            worse = all(at[n, sinks]["perplexity_ratio_low"] > 1 for n in kept)
            none = all(at[n, sinks]["perplexity_ratio_high"] <= 1 for n in kept)
            text = f"quality depends on the window, first {sinks} tokens visible" if sinks else (
                "quality depends on the window, no first token visible"
            )  # fmt: skip
            result.append(claim(text, "depends on the window",
                                f"perplexity by window at {context:,} tokens: {said}",
                                held(inside=worse, outside=none), model))  # fmt: skip
        pairs = [[by_digest[at[n, sinks]["record"]] for sinks in SINKS] for n in kept]
        times = [paired_ratio(bare, beside) for bare, beside in pairs]
        said = ", ".join(
            f"{n:,}: {x:.4g} [{low:.4g}, {high:.4g}]" for n, (x, low, high) in zip(kept, times, strict=True)
        )
        result.append(claim("a window alone keeps what a model needs (first tokens are not mentioned)", "window only",
                            f"KLD without the first 4 tokens over that with them: {said}",
                            held(inside=all(high <= 1 for *_, high in times),
                                 outside=all(low > 1 for _, low, _ in times)), model))  # fmt: skip
        result += _recall(model, context, [row for row in depths if row["model"] == model and not row["bits"]])
        result += _coded(model, context, rows)
    for record in of_kind(records, BOUND):
        (row,) = record.tables["pages"]
        gap = row["logit_gap"]
        said = (
            f"{row['most_pages']} pages of {row['page_size']} at most over {row['tokens']:,} tokens, window "
            f"{record.config['window']} + 4 (bound {row['bound']})"
        )
        inside = row["most_pages"] <= row["bound"]
        model = record.config["model"]
        result.append(claim("a window's cache has a fixed size", "window_size", said, inside, model))
        said = f"largest error over the largest logit {gap:.1e} (bound {CLOSE:g}: float32 sums in another order)"
        result.append(claim("pages that come back equal a mask", "not said", said, gap <= CLOSE, model))
    return result


def _change(row: Row) -> str:
    change, low, high = (row[f"perplexity_ratio{end}"] - 1 for end in ("", "_low", "_high"))
    return f"{change:+.1%} [{low:+.1%}, {high:+.1%}]"


def _recall(model: str, context: int, rows: Sequence[Row]) -> list[Row]:
    """Facts that stand behind the window are lost, whatever first tokens are kept."""
    behind = [row for row in rows if row["context"] == context and (1 - row["depth"]) * context > 1.25 * row["window"]]
    within = [row for row in rows if row["context"] == context and (1 - row["depth"]) * context < 0.75 * row["window"]]
    if not behind or not within:
        return []
    lost, kept, exact = (
        sum(row[name] * row["questions"] for row in part) / sum(row["questions"] for row in part)
        for part, name in ((behind, "recall"), (within, "recall"), (within, "recall_exact"))
    )
    said = (
        f"of facts well behind the window {lost:.0%} recalled, well within it {kept:.0%} (exact cache {exact:.0%}), "
        f"depths {', '.join(f'{depth:g}' for depth in DEPTHS)}"
    )
    return [claim("long documents can be generated with a window", "use case: long documents", said,
                  held(inside=lost >= exact - 0.05, outside=lost < exact / 2), model)]  # fmt: skip


def _coded(model: str, context: int, rows: Sequence[Row]) -> list[Row]:
    """What codes add to what a window loses."""
    found = {
        (row["bits"] > 0, row["window"], row["sinks"]): row
        for row in rows
        if row["model"] == model and row["context"] == context
    }
    pairs = [(key[1:], row, found[False, *key[1:]]) for key, row in found.items()
             if key[0] and (False, *key[1:]) in found]  # fmt: skip
    if not pairs:
        return []
    said = ", ".join(
        f"{window:,} + {sinks}: {coded['kld_mean']:.2g} nats ({exact['kld_mean']:.2g} exact)"
        for (window, sinks), coded, exact in sorted(pairs, key=lambda pair: pair[0])
    )
    bits = max(row["bits"] for _, row, _ in pairs)
    return [claim("techniques stack: a window and codes", "not measured",
                  f"KLD through windows at {bits:g} bits: {said}", NO_CLAIM, model)]  # fmt: skip


def plots_d(records: Sequence[Record]) -> list[Plot]:
    """KLD and recall against the window."""
    rows = [row | {"kept": f"{_shape(row)}, {row['sinks']} first"} for row in window_rows(records)]
    drawn = []
    for name, label in (("kld_mean", "mean KL divergence (nats)"), ("recall", "recall")):
        known = [row for row in rows if row[name] is not None]
        points = lines(known, lambda row: f"{row['model']}, {row['context']:,} tokens", "kept", "window", name)
        labels = ("window, tokens", label)
        title = f"Through a window: {label}"
        drawn.append(plot(f"d_{name}", title, labels, points, "cache", log_x=True, log_y=name == "kld_mean"))
    return drawn


def _shape(row: Row) -> str:
    return f"{row['bits']:.3g} bits" if row["bits"] else "exact"
