"""What the report claims of quality and of its test of the softmax, beside what the cells of part a say.

That something is wrong is a matter of fact in the windows that ran: one case refutes "always". How much, or that one
thing costs more than another, is inferred from windows, and said by intervals alone, corrected for the comparisons that
the verdict rests on; contexts stand apart, as their windows are cut from the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pqkv.record import Record
from pqkv.reproduce.models import model_order
from pqkv.reproduce.quality_degradation.verdicts import (
    BY_METRIC,
    FEWEST_WINDOWS,
    LOGIT_TOLERANCE,
    REPORTED_MASS,
    by_logits,
    damaged,
    few,
    finite,
    mean_interval,
    sees,
)
from pqkv.reproduce.tables import Row, claim, held

KLD, PERPLEXITY = BY_METRIC["kld_mean"], BY_METRIC["perplexity_ratio"]
# what a sound kernel may differ by: the KLD from which on a fault counts, and a tenth of the bound of perplexity
_SOUND_KLD, _SOUND_PERPLEXITY = KLD.highest, 1e-3
_ROUNDING = 1e-9  # nats
NOT_RUN = "not run"
TOO_FEW = f"under {FEWEST_WINDOWS} windows a context say nothing of others"


@dataclass(frozen=True, slots=True)
class Claim:
    """One line of claims.csv; `holds` is None where it is not known, and `ours` then says why."""

    part: str
    claim: str
    theirs: str
    ours: str
    holds: bool | None
    device: str = "cpu"
    model: str = ""

    def row(self) -> Row:
        """As claims.csv has it; what a GPU gave stands in its own column too."""
        row = claim(self.claim, self.theirs, self.ours, self.holds, self.model)
        return {"part": self.part, **row, "gpu": self.ours if self.device == "cuda" else None}


def claims_of(records: Sequence[Record]) -> Iterator[Claim]:
    """The claims, each from the cells of one model on one device; those of a GPU where there are any, after those of
    the CPU.
    """
    from pqkv.reproduce.quality_degradation.priorities import priorities  # it ranks by the helpers of this file

    ran = [record for record in records if record.kind == "eval" and record.status == "ok"]
    asked = {(model_of(record), record.config["device"]) for record in ran}
    for model, device in sorted(asked, key=lambda found: (model_order(found[0]), found[1])):
        members = [r for r in ran if (model_of(r), r.config["device"]) == (model, device)]
        part = "" if device == "cpu" else f" ({device})"
        single = (
            _fixed, _from_2048, _warps, _drift, _all_five, _blind_sum, _blind_sum_elsewhere, _sound_sum,
            _perplexity_misses, _known_damage, _kld_misses,
        )  # fmt: skip
        for found in (*(one(members) for one in single), *priorities(members)):
            yield replace(found, part=found.part + part, device=device, model=model)


def model_of(record: Record) -> str:
    """The model whose figures a record holds."""
    return str(record.config["model"])


def of_faults(records: Sequence[Record], *names: str) -> list[Record]:
    """Cells of the faults whose names begin so, shortest context first."""
    wanted = [r for r in records if any(str(r.config["backend"]).startswith(f"fault:{name}") for name in names)]
    return sorted(wanted, key=lambda r: r.config["context"])


def kld(record: Record) -> float:
    """Mean KLD; what is no number is infinitely far."""
    metric = record.metrics.get("kld_mean")
    return float("inf") if metric is None or metric.value is None else metric.value


def contexts_of(records: Sequence[Record]) -> str:
    """For a sentence."""
    return ", ".join(str(c) for c in sorted({r.config["context"] for r in records})) or "none"


def names_of(records: Sequence[Record], *, contexts: bool = False) -> str:
    """Faults of some cells, for a sentence."""
    found = {(str(r.config["backend"]).removeprefix("fault:"), r.config["context"] if contexts else 0) for r in records}
    return ", ".join(f"{name} at {context}" if contexts else name for name, context in sorted(found)) or "none"


def _of_unknown(cells: Sequence[Record]) -> str:
    return f"; its interval holds both answers in {len(cells)}: {names_of(cells)}" if cells else ""


def _number(record: Record, name: str) -> float:
    value = record.metrics[name].value
    return float("inf") if value is None else value


def _fixed(records: Sequence[Record]) -> Claim:
    sound = of_faults(records, "none")
    said, theirs = "with every fix, paged equals contiguous", "within tolerance"
    if not sound:
        return Claim("fixes", said, theirs, NOT_RUN, None)
    worst = max(kld(r) for r in sound)
    change = max(abs(_number(r, "perplexity_ratio") - 1) for r in sound)
    ours = f"mean KLD at most {worst:.1e} nats, perplexity within {change:.1e} at {contexts_of(sound)} tokens"
    errors = [_number(r, "logit_error") for r in sound if by_logits(r)]
    if errors:
        ours += f"; logits within {max(errors):.1e} of the largest in {len(errors)} of {len(sound)} cells"
    within = worst < _SOUND_KLD and change < _SOUND_PERPLEXITY and max(errors, default=0.0) <= LOGIT_TOLERANCE
    return Claim("fixes", said, theirs, ours, within)


def _from_2048(records: Sequence[Record]) -> Claim:
    """Up to 2,048 tokens the fault does nothing by construction: what is found there is no evidence."""
    part, said, theirs = "shared-memory-2048", "quality falls beyond 2,048 tokens", "> 2,048"
    cells = [r for r in of_faults(records, "shared-memory-2048") if r.config["context"] > 2048]
    if not cells:
        return Claim(part, said, theirs, f"{NOT_RUN} beyond 2,048 tokens", None)
    seen = {r.digest: sees(KLD, r, comparisons=len(cells)) for r in cells}
    fallen = [r for r in cells if seen[r.digest]]
    unknown = [r for r in cells if seen[r.digest] is None]
    ours = f"KLD over {KLD.highest} nats in {len(fallen)} of {len(cells)} cells beyond"
    if fallen:
        ours += f", first at {fallen[0].config['context']} tokens, up to {max(map(kld, fallen)):.2g} nats"
    if unknown:
        ours += f"; not known of {names_of(unknown, contexts=True)}"
    if few(cells):
        return Claim(part, said, theirs, f"{ours}; {TOO_FEW}", None)
    first = [seen[r.digest] for r in cells if r.config["context"] == cells[0].config["context"]]
    return Claim(part, said, theirs, ours, held(inside=all(first), outside=not fallen and not unknown))


def _warps(records: Sequence[Record]) -> Claim:
    said, theirs = "a warp's reduction fails at context > 32", "context > 32"
    one = of_faults(records, "warp-max/32", "warp-sum/32")
    more = of_faults(records, "warp-max/64", "warp-max/128", "warp-sum/64", "warp-sum/128")
    if not one or not more:
        return Claim("warps", said, theirs, NOT_RUN, None)
    wrong, others = ([damaged(r, len(cells)) for r in cells] for cells in (one, more))
    longest = max(r.config["context"] for r in one)
    ours = (
        f"block of 32: {wrong.count(True)} of {len(one)} cells wrong, contexts to {longest}; "
        f"64 and 128: {others.count(True)} of {len(more)}"
        f"{': the condition is block > 32' if any(others) and not any(wrong) else ''}"
    )
    return Claim("warps", said, theirs, ours, held(inside=any(wrong), outside=wrong.count(False) == len(one)))


def _drift(records: Sequence[Record]) -> Claim:
    said, theirs = "decoding at pos - 1 drifts further with every token", "cumulative"
    part, quarters = "rope-minus-one", ("kld_first_quarter", "kld_last_quarter")
    cells = [r for r in of_faults(records, part) if set(quarters) <= set(r.samples)]
    if not cells:
        return Claim(part, said, theirs, NOT_RUN, None)
    ratios = []
    for record in cells:
        # no mean KLD over a quarter of the steps lies below rounding: a zero is as good as that
        early, late = (np.log(np.maximum(record.samples[name], _ROUNDING)) for name in quarters)
        ratios.append((float(np.exp((late - early).mean())), *map(np.exp, mean_interval(late - early, len(cells)))))
    early, late = (np.mean([np.mean(r.samples[name]) for r in cells]) for name in quarters)
    fades = [r for r, (_, _, high) in zip(cells, ratios, strict=True) if high < 1]
    grows = [r for r, (_, low, _) in zip(cells, ratios, strict=True) if low > 1]
    middle = sorted(value for value, _, _ in ratios)
    ours = (
        f"mean KLD of the first quarter of the steps {early:.2g}, of the last {late:.2g} nats; by context the last is "
        f"{middle[0]:.2g} to {middle[-1]:.2g} times the first (geometric means of windows): less at {len(fades)} of "
        f"{len(cells)} contexts, more at {len(grows)}"
    )
    if few(cells):
        return Claim(part, said, theirs, f"{ours}; {TOO_FEW}", None)
    return Claim(part, said, theirs, ours, held(inside=len(grows) == len(cells), outside=bool(fades)))


def _all_five(records: Sequence[Record]) -> Claim:
    part, said, theirs = "all-five", "the five defects together show beyond 2,048 tokens", "> 2,048"
    cells = of_faults(records, "all-five")
    if not cells:
        return Claim(part, said, theirs, NOT_RUN, None)
    told, early = [], []
    for name in dict.fromkeys(str(r.config["backend"]) for r in cells):
        own = [r for r in cells if r.config["backend"] == name]
        wrong = [r for r in own if damaged(r, len(cells))]
        early += [r for r in wrong if r.config["context"] <= 2048]
        low, high = min(map(kld, own)), max(map(kld, own))
        first = f"from {wrong[0].config['context']} tokens on" if wrong else "nowhere"
        blind = [r for r in wrong if _passes_sum_test(r)]
        told.append(
            f"blocks of {name.split('/')[1]}: damage {first}, mean KLD {low:.2g} to {high:.2g} nats, the softmax sums "
            f"to 1 in {len(blind)} of {len(wrong)} cells"
        )
    return Claim(part, said, theirs, "; ".join(told), not early)


def _reductions(record: Record) -> bool:
    return str(record.config["backend"]).startswith(("fault:warp-max", "fault:warp-sum"))


def _passes_sum_test(record: Record) -> bool:
    return finite(record) and _number(record, "softmax_mass_error") <= REPORTED_MASS


def _blind_sum(records: Sequence[Record]) -> Claim:
    said = "a test that the softmax sums to 1 finds a broken reduction"
    return _sum_test("softmax sum", said, [r for r in records if _reductions(r)])


def _blind_sum_elsewhere(records: Sequence[Record]) -> Claim:
    said = "it finds the other defects of exact pages"
    together = {r.digest for r in of_faults(records, "all-five")}  # broken reductions among others: a claim of its own
    others = [r for r in records if not _reductions(r) and r.digest not in together]
    return _sum_test("softmax sum, others", said, others)


def _damaged_cells(records: Sequence[Record]) -> tuple[list[Record], str]:
    """Cells on exact pages in which something is wrong, and how many it is not known of, for a sentence."""
    own = [r for r in records if r.config["bits"] == 0]
    wrong = {r.digest: damaged(r, len(own)) for r in own}
    unknown = [r for r in own if wrong[r.digest] is None]
    said = f"; damage not known of {len(unknown)} more, which are left out" if unknown else ""
    return [r for r in own if wrong[r.digest]], said


def _sum_test(part: str, said: str, records: Sequence[Record]) -> Claim:
    found, left_out = _damaged_cells(records)
    cells = [r for r in found if "softmax_mass_error" in r.metrics]
    if not cells:
        return Claim(part, said, "yes", f"{NOT_RUN} on a damaged cell", None)
    missed = [r for r in cells if _passes_sum_test(r)]
    ours = f"misses {len(missed)} of {len(cells)} damaged cells: {names_of(missed)}{left_out}"
    return Claim(part, said, "yes", ours, held(inside=not missed and not left_out, outside=bool(missed)))


def _sound_sum(records: Sequence[Record]) -> Claim:
    part, said, theirs = "softmax sum, sound", "a sound kernel passes that test", "allclose(atol=1e-5)"
    cells = [r for r in of_faults(records, "none") if "softmax_mass_error" in r.metrics]
    if not cells:
        return Claim(part, said, theirs, NOT_RUN, None)
    failed = [r for r in cells if _number(r, "softmax_mass_error") > REPORTED_MASS]
    worst = max(_number(r, "softmax_mass_error") for r in cells)
    where = f", at {contexts_of(failed)} tokens" if failed else ""
    ours = f"fails {len(failed)} of {len(cells)} cells{where}; sums off by {worst:.1e} at most"
    return Claim(part, said, theirs, ours, not failed)


def _perplexity_misses(records: Sequence[Record]) -> Claim:
    part, said = "perplexity", "perplexity shows the damage"
    cells, left_out = _damaged_cells(records)
    if not cells:
        return Claim(part, said, "yes", f"{NOT_RUN} on a damaged cell", None)
    seen = {r.digest: sees(PERPLEXITY, r, comparisons=len(cells)) for r in cells}
    missed = [r for r in cells if seen[r.digest] is False]
    unknown = [r for r in cells if seen[r.digest] is None]
    ours = (
        f"within 1% in {len(missed)} of {len(cells)} damaged cells: {names_of(missed, contexts=True)}"
        f"{_of_unknown(unknown)}{left_out}"
    )
    if few(missed):
        return Claim(part, said, "yes", f"{ours}; {TOO_FEW}", None)
    sure = not missed and not unknown and not left_out
    return Claim(part, said, "yes", ours, held(inside=sure, outside=bool(missed)))


def _known_damage(records: Sequence[Record]) -> Claim:
    part, said = "damage", "damage is known from something else than the measures that are judged"
    cells = [r for r in records if r.config["bits"] == 0]
    if not cells:
        return Claim(part, said, "ours", NOT_RUN, None)
    known = [r for r in cells if by_logits(r)]
    ours = f"by an error of logits over {LOGIT_TOLERANCE:.0e} in {len(known)} of {len(cells)} cells"
    if len(known) < len(cells):
        ours += (
            f"; the records of the others are older than that error, and damage in them is a KLD over {KLD.highest} "
            "nats until they are measured again"
        )
    return Claim(part, said, "ours", ours, len(known) == len(cells))


def _kld_misses(records: Sequence[Record]) -> Claim:
    """Where damage is a matter of the KLD itself, nothing can be said of it: "yes" needs the error of all logits."""
    part, said = "KLD", "the KLD shows the damage"
    older = [r for r in records if r.config["bits"] == 0 and not by_logits(r)]
    cells, _ = _damaged_cells([r for r in records if by_logits(r)])
    if not cells:
        return Claim(part, said, "ours", "no damaged cell has the error of its logits, which would tell", None)
    seen = {r.digest: sees(KLD, r, comparisons=len(cells)) for r in cells}
    missed = [r for r in cells if seen[r.digest] is False]
    unknown = [r for r in cells if seen[r.digest] is None]
    ours = (
        f"under {KLD.highest} nats in {len(missed)} of {len(cells)} cells that their logits show damaged: "
        f"{names_of(missed, contexts=True)}{_of_unknown(unknown)}"
    )
    if older:
        ours += f"; {len(older)} cells have no error of logits to tell"
    if few(missed):
        return Claim(part, said, "ours", f"{ours}; {TOO_FEW}", None)
    return Claim(part, said, "ours", ours, held(inside=not missed and not unknown and not older, outside=bool(missed)))
