"""What the report on the attention that lost quality claims, beside what the records say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pqkv.quality.summary import bootstrap
from pqkv.record import Record
from pqkv.reproduce.models import model_order


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of claims.csv; `holds` is None where this machine cannot tell."""

    part: str
    claim: str
    theirs: str
    ours: str
    holds: bool | None
    device: str = "cpu"
    model: str = ""


_SEEN = 1e-3  # nats: the mean KLD from which on a fault shows
# what the report's test of the softmax sum notices: allclose(sum, 1, atol=1e-5), whose rtol of 1e-5 comes on top
REPORTED_MASS = 2e-5


def claims_of(records: Sequence[Record]) -> Iterable[Claim]:
    """The claims, each from the records of one model on one device; those of a GPU where there are any, after those of
    the CPU.
    """
    asked = {(model_of(record), record.config["device"]) for record in records}
    for model, device in sorted(asked, key=lambda found: (model_order(found[0]), found[1])):
        members = [r for r in records if (model_of(r), r.config["device"]) == (model, device)]
        part = "" if device == "cpu" else f" ({device})"
        for claim in (
            _fixed,
            _from_2048,
            _warps,
            _drift,
            _blind_sum,
            _blind_sum_elsewhere,
            _sound_sum,
            _perplexity_misses,
        ):
            found = claim(members)
            yield replace(found, part=found.part + part, device=device, model=model)


def model_of(record: Record) -> str:
    """The model whose figures a record holds."""
    return str(record.config["model"])


def _of(records: Sequence[Record], *names: str) -> list[Record]:
    wanted = [r for r in records if any(str(r.config["backend"]).startswith(f"fault:{name}") for name in names)]
    return sorted(wanted, key=lambda r: r.config["context"])


def _kld(record: Record) -> float:
    """Mean KLD; what is no number is infinitely far."""
    metric = record.metrics.get("kld_mean")
    return float("inf") if metric is None or metric.value is None else metric.value


def _bad(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if _kld(record) > _SEEN]


def _contexts(records: Sequence[Record]) -> str:
    return ", ".join(str(c) for c in sorted({r.config["context"] for r in records})) or "none"


def _fixed(records: Sequence[Record]) -> Claim:
    sound = _of(records, "none")
    claim, theirs = "with every fix, paged equals contiguous", "within tolerance"
    if not sound:
        return Claim("fixes", claim, theirs, "not run", None)
    worst = max(_kld(r) for r in sound)
    change = max(abs((r.metrics["perplexity_ratio"].value or 0) - 1) for r in sound)
    ours = f"mean KLD at most {worst:.1e} nats, perplexity within {change:.1e} at {_contexts(sound)} tokens"
    return Claim("fixes", claim, theirs, ours, worst < _SEEN and change < 1e-3)


def _from_2048(records: Sequence[Record]) -> Claim:
    cells = _of(records, "shared-memory-2048")
    bad = _bad(cells)
    first = min((r.config["context"] for r in bad), default=None)
    below = [r for r in bad if r.config["context"] <= 2048]
    ours = "not seen" if first is None else f"first at {first} tokens, up to {max(map(_kld, bad)):.2g} nats"
    return Claim("shared-memory-2048", "quality falls beyond 2,048 tokens", "> 2,048", ours, bool(bad) and not below)


def _warps(records: Sequence[Record]) -> Claim:
    one = _of(records, "warp-max/32", "warp-sum/32")
    more = _of(records, "warp-max/64", "warp-max/128", "warp-sum/64", "warp-sum/128")
    if not one or not more:
        return Claim("warps", "a warp's reduction fails at context > 32", "context > 32", "not run", None)
    longest = max(r.config["context"] for r in one)
    ours = (
        f"block of 32: {len(_bad(one))} of {len(one)} cells wrong, contexts to {longest}; "
        f"64 and 128: {len(_bad(more))} of {len(more)}"
        f"{': the condition is block > 32' if _bad(more) and not _bad(one) else ''}"
    )
    return Claim("warps", "a warp's reduction fails at context > 32", "context > 32", ours, bool(_bad(one)))


def _drift(records: Sequence[Record]) -> Claim:
    claim, theirs = "decoding at pos - 1 drifts further with every token", "cumulative"
    cells = [r for r in _of(records, "rope-minus-one") if {"kld_first_quarter", "kld_last_quarter"} <= set(r.samples)]
    if not cells:
        return Claim("rope-minus-one", claim, theirs, "not run", None)
    early, late = (
        np.array([x for r in cells for x in r.samples[f"kld_{which}_quarter"]]) for which in ("first", "last")
    )
    low, high = bootstrap([early, late], lambda x, y: y.mean(-1) / x.mean(-1), seed=0)
    interval = "" if low is None else f" [{low:.2g}, {high:.2g}]"
    ours = (
        f"mean KLD of the first quarter of the steps {early.mean():.2g}, of the last {late.mean():.2g} nats; "
        f"ratio {late.mean() / early.mean():.2g}{interval} over {len(early)} windows"
    )
    return Claim("rope-minus-one", claim, theirs, ours, low is not None and low > 1)


def _reductions(record: Record) -> bool:
    return str(record.config["backend"]).startswith(("fault:warp-max", "fault:warp-sum"))


def _blind_sum(records: Sequence[Record]) -> Claim:
    claim = "a test that the softmax sums to 1 finds a broken reduction"
    return _sum_test("softmax sum", claim, [r for r in records if _reductions(r)])


def _blind_sum_elsewhere(records: Sequence[Record]) -> Claim:
    claim = "it finds the other defects of exact pages"
    return _sum_test("softmax sum, others", claim, [r for r in records if not _reductions(r)])


def _sum_test(part: str, claim: str, records: Sequence[Record]) -> Claim:
    cells = [r for r in _bad(records) if r.config["bits"] == 0 and "softmax_mass_error" in r.metrics]
    if not cells:
        return Claim(part, claim, "yes", "not run", None)
    missed = [r for r in cells if (r.metrics["softmax_mass_error"].value or 0) <= REPORTED_MASS and _finite(r)]
    names = sorted({str(r.config["backend"]).removeprefix("fault:") for r in missed})
    ours = f"misses {len(missed)} of {len(cells)} damaged cells: {', '.join(names) or 'none'}"
    return Claim(part, claim, "yes", ours, not missed)


def _sound_sum(records: Sequence[Record]) -> Claim:
    part, claim, theirs = "softmax sum, sound", "a sound kernel passes that test", "allclose(atol=1e-5)"
    cells = [r for r in _of(records, "none") if "softmax_mass_error" in r.metrics]
    if not cells:
        return Claim(part, claim, theirs, "not run", None)
    failed = [r for r in cells if (r.metrics["softmax_mass_error"].value or 0) > REPORTED_MASS]
    worst = max(r.metrics["softmax_mass_error"].value or 0 for r in cells)
    where = f", at {_contexts(failed)} tokens" if failed else ""
    ours = f"fails {len(failed)} of {len(cells)} cells{where}; sums off by {worst:.1e} at most"
    return Claim(part, claim, theirs, ours, not failed)


def _perplexity_misses(records: Sequence[Record]) -> Claim:
    claim = "perplexity shows the damage"
    cells = [r for r in _bad(records) if r.config["bits"] == 0]
    missed = [r for r in cells if _finite(r) and abs((r.metrics["perplexity_ratio"].value or 0) - 1) <= 0.01]
    names = sorted({f"{str(r.config['backend']).removeprefix('fault:')} at {r.config['context']}" for r in missed})
    ours = f"within 1% in {len(missed)} of {len(cells)} cells that the KLD sees: {', '.join(names) or 'none'}"
    return Claim("perplexity", claim, "yes", ours, not missed if cells else None)


def _finite(record: Record) -> bool:
    return all(metric.value is not None for metric in record.metrics.values())
