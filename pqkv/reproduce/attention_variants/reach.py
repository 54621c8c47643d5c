"""Part e: a trained model beyond its length, with its own rotary embedding, with linear, NTK and YaRN ones, and with
the lesson's factor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pqkv.config import Rope
from pqkv.lm import LanguageModel, attach, load_model
from pqkv.lm.rope_variant import RopeVariant
from pqkv.quality.summary import bootstrap
from pqkv.record import Record
from pqkv.report.drawing import Plot
from pqkv.reproduce.attention_variants.listings import scaling_factor
from pqkv.reproduce.attention_variants.settings import Settings
from pqkv.reproduce.attention_variants.windows import TEXT, text_windows
from pqkv.reproduce.parts import part_cell
from pqkv.reproduce.run import Request
from pqkv.reproduce.tables import Row, claim, held, lines, newest, of_kind, plot

REACH = "attention-reach"
NONE, REPORTED = "none", "the lesson's"
KINDS = (NONE, "linear", "ntk", "yarn", REPORTED)
CONTROL = 0.01  # a control: what a variant may cost at the trained length
_ROWS = 512  # whose logits are made at once


def part_e(settings: Settings, request: Request) -> Iterator[Record]:
    """Every embedding at the trained length and at its multiples, on the same windows."""
    made: dict[int, Tensor] = {}

    def texts(lm: LanguageModel, tokens: int) -> Tensor:
        """Of the first model that asks: embeddings change no tokenizer, and the whole text is read for them."""
        if tokens not in made:
            made[tokens] = text_windows(lm, tokens, settings.reach_windows)
        return made[tokens]

    for kind in KINDS:
        loaded = cache(partial(reaching, settings.model, kind, settings.trained, max(settings.reach_times)))
        for times in settings.reach_times:
            tokens = settings.trained * times
            request.report(f"e: {settings.model}, {kind}, {tokens} tokens", 0, 1)
            config = {
                "part": "e", "model": settings.model, "data": TEXT, "rope": kind, "factor": max(settings.reach_times),
                "trained": settings.trained, "tokens": tokens, "windows": settings.reach_windows, "seed": settings.seed,
            }  # fmt: skip
            yield part_cell(REACH, config, partial(_measured, settings, loaded, texts, tokens), request)


class LessonRotary(nn.Module):
    """The lesson's YaRN: `yarn_get_scaling_factor` of a position times its angle, the same for every pair."""

    def __init__(self, inv_freq: Tensor, trained: int, factor: float) -> None:
        super().__init__()
        self.inv_freq, self.trained, self.factor = inv_freq.double(), trained, factor

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin (B, T, D) in the dtype of `states`."""
        dim = 2 * len(self.inv_freq)
        factors = [scaling_factor(p, 0.0, self.factor, self.trained, dim) for p in position_ids[0].tolist()]
        scaled = position_ids.double() * torch.tensor(factors, dtype=torch.float64, device=states.device)
        angles = scaled[..., None] * self.inv_freq
        both = torch.cat([angles, angles], -1)
        return both.cos().to(states.dtype), both.sin().to(states.dtype)


def reaching(name: str, kind: str, trained: int, factor: float) -> LanguageModel:
    """The model with one of `KINDS`, made to take `factor` times `trained` positions."""
    if kind in (NONE, REPORTED):
        lm = load_model(name)
        if kind == REPORTED:
            inner = cast(Any, lm.model).model
            inner.rotary_emb = LessonRotary(inner.rotary_emb.inv_freq, trained, factor)
        return lm
    return load_model(name, rope=RopeVariant(cast(Rope, kind), factor, trained))


def _measured(
    settings: Settings, loaded: Callable[[], LanguageModel], texts: Callable[[LanguageModel, int], Tensor], tokens: int
) -> dict[str, Any]:
    lm = loaded()
    attach(lm.model)
    losses = np.stack([losses_of(lm, ids[None]) for ids in texts(lm, tokens)])
    row: Row = {}
    for name, part in (("perplexity", losses), ("perplexity_newest", losses[:, -settings.trained // 2 :])):
        means = part.mean(1)
        low, high = bootstrap([means], lambda m: np.exp(m.mean(-1)), settings.seed)
        row |= {name: float(np.exp(means.mean())), f"{name}_low": low, f"{name}_high": high}
    samples = {"nll": losses.mean(1).tolist(), "nll_newest": losses[:, -settings.trained // 2 :].mean(1).tolist()}
    return {"metrics": {}, "tables": {"reach": [row]}, "samples": samples}


def losses_of(lm: LanguageModel, ids: Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    """-log p of each token but the first."""
    states = lm.states(ids)[0, :-1]
    found = []
    for start in range(0, len(states), _ROWS):
        logits = lm.head(states[start : start + _ROWS]).double()
        targets = ids[0, 1 + start : 1 + start + len(logits)]
        found.append(nn.functional.cross_entropy(logits, targets, reduction="none"))
    return torch.cat(found).cpu().numpy()


def reach_rows(records: Sequence[Record]) -> list[Row]:
    """Perplexity of each embedding at each length, of all tokens and of the newest."""
    rows = []
    for record in of_kind(records, REACH):
        kept = {key: record.config[key] for key in ("model", "rope", "factor", "trained", "tokens", "windows")}
        kept |= record.tables["reach"][0]
        rows.append(kept | {"record": record.digest})
    return newest(rows, "model", "trained", "tokens", "rope", most="windows")


def finding_e(records: Sequence[Record]) -> list[Row]:
    """Outside: which embeddings hold up; inside: the control."""
    result = []
    rows, by_digest = reach_rows(records), {record.digest: record for record in records}
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {(row["rope"], row["tokens"]): row for row in rows if row["model"] == model}
        trained = next(iter(own.values()))["trained"]
        lengths = sorted({tokens for _, tokens in own})
        beyond = [n for n in lengths if n > trained]
        if (NONE, trained) not in own or not beyond:
            continue
        plain = own[NONE, trained]["perplexity_newest"]
        least, most = _bounds(own[NONE, trained])
        said = ", ".join(f"{n:,}: {own[NONE, n]['perplexity_newest']:.3g}" for n in beyond if (NONE, n) in own)
        worst = [_bounds(own[NONE, n]) for n in beyond if (NONE, n) in own]
        result.append(claim("beyond its trained length a model gets much worse", "large loss",
                            f"perplexity of the newest tokens: {trained:,}: {plain:.3g}, {said}",
                            held(inside=all(low > 1.5 * most for low, _ in worst),
                                 outside=all(high < 1.05 * least for _, high in worst)), model))  # fmt: skip
        for kind in KINDS[1:]:
            cells = [(n, own[kind, n]) for n in beyond if (kind, n) in own]
            if not cells:
                continue
            ratios = [(n, *_ratio(by_digest, row, own[NONE, n])) for n, row in cells if (NONE, n) in own]
            said = ", ".join(f"{n:,}: {row['perplexity_newest']:.3g}" for n, row in cells)
            times = ", ".join(f"{n:,}: {x:.2f} {_told(low, high, '.2f')}" for n, x, low, high in ratios)
            text = {REPORTED: "the lesson's YaRN helps beyond the trained length"}.get(
                kind, f"{kind}, factor {cells[0][1]['factor']:g}, helps beyond the trained length"
            )
            result.append(claim(text, "better outside" if kind in (REPORTED, "yarn") else "not said",
                                f"perplexity of the newest tokens {said}; over none: {times}",
                                held(inside=all(high < 1 for *_, high in ratios),
                                     outside=any(low >= 1 for _, _, low, _ in ratios)), model))  # fmt: skip
            if (kind, trained) in own:
                value, low, high = _ratio(by_digest, own[kind, trained], own[NONE, trained], name="nll")
                result.append(claim(f"control: {kind} within 1% at the trained length", "no loss",
                                    f"{value - 1:+.2%} {_told(low - 1, high - 1, '+.2%')} at {trained:,} tokens",
                                    held(inside=low - 1 > -CONTROL and high - 1 < CONTROL,
                                         outside=low - 1 >= CONTROL or high - 1 <= -CONTROL), model))  # fmt: skip
    return result


def _ratio(
    records: dict[str, Record], over: Row, under: Row, *, name: str = "nll_newest"
) -> tuple[float, float, float]:
    """Perplexity over perplexity, windows drawn together; the interval is everything where there is one window."""
    a, b = (np.array(records[row["record"]].samples[name]) for row in (over, under))
    value = float(np.exp(a.mean() - b.mean()))
    low, high = bootstrap([a, b], lambda x, y: np.exp(x.mean(-1) - y.mean(-1)), 0)
    return value, 0.0 if low is None else low, float("inf") if high is None else high


def _bounds(row: Row) -> tuple[float, float]:
    """The interval of a perplexity of the newest tokens; of one window it is everything."""
    low, high = row["perplexity_newest_low"], row["perplexity_newest_high"]
    return 0.0 if low is None else low, float("inf") if high is None else high


def _told(low: float, high: float, form: str) -> str:
    """An interval, which one window does not give."""
    return "(one window)" if high == float("inf") else f"[{low:{form}}, {high:{form}}]"


def plots_e(records: Sequence[Record]) -> list[Plot]:
    """Perplexity of the newest tokens against the length."""
    drawn = lines(reach_rows(records), lambda row: row["model"], "rope", "tokens", "perplexity_newest")
    labels = ("tokens", "perplexity of the newest tokens")
    return [plot("e_reach", "Beyond the trained length", labels, drawn, "rotary embedding", log_x=True, log_y=True)]
