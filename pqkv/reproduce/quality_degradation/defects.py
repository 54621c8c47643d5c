"""What the report claims of its defects: from where on they show, under which condition, and whether they grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pqkv.record import Record
from pqkv.reproduce.quality_degradation.claim import (
    NOT_RUN,
    TOO_FEW,
    Claim,
    contexts_of,
    kld,
    names_of,
    number,
    of_faults,
    passes_sum_test,
)
from pqkv.reproduce.quality_degradation.verdicts import (
    BY_METRIC,
    LOGIT_TOLERANCE,
    by_logits,
    damaged,
    few,
    mean_interval,
    sees,
)
from pqkv.reproduce.tables import held

KLD = BY_METRIC["kld_mean"]
# what a sound kernel may differ by: the KLD from which on a fault counts, and a tenth of the bound of perplexity
_SOUND_KLD, _SOUND_PERPLEXITY = KLD.highest, 1e-3
_ROUNDING = 1e-9  # nats


def fixed(records: Sequence[Record]) -> Claim:
    """Is the kernel with every fix the contiguous cache?"""
    sound = of_faults(records, "none")
    said, theirs = "with every fix, paged equals contiguous", "within tolerance"
    if not sound:
        return Claim("fixes", said, theirs, NOT_RUN, None)
    worst = max(kld(r) for r in sound)
    change = max(abs(number(r, "perplexity_ratio") - 1) for r in sound)
    ours = f"mean KLD at most {worst:.1e} nats, perplexity within {change:.1e} at {contexts_of(sound)} tokens"
    errors = [number(r, "logit_error") for r in sound if by_logits(r)]
    if errors:
        ours += f"; logits within {max(errors):.1e} of the largest in {len(errors)} of {len(sound)} cells"
    within = worst < _SOUND_KLD and change < _SOUND_PERPLEXITY and max(errors, default=0.0) <= LOGIT_TOLERANCE
    return Claim("fixes", said, theirs, ours, within)


def from_2048(records: Sequence[Record]) -> Claim:
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


def warps(records: Sequence[Record]) -> Claim:
    """Is it the context that a warp's own reduction needs to fail?"""
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


def drift(records: Sequence[Record]) -> Claim:
    """Does the damage of wrong positions grow with the tokens decoded, at every context?"""
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


def all_five(records: Sequence[Record]) -> Claim:
    """From where on do the five together show?"""
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
        blind = [r for r in wrong if passes_sum_test(r)]
        told.append(
            f"blocks of {name.split('/')[1]}: damage {first}, mean KLD {low:.2g} to {high:.2g} nats, the softmax sums "
            f"to 1 in {len(blind)} of {len(wrong)} cells"
        )
    return Claim(part, said, theirs, "; ".join(told), not early)
