"""What the report claims of its test of the softmax, and which measure of quality shows what is damaged."""

from __future__ import annotations

from collections.abc import Sequence

from pqkv.record import Record
from pqkv.reproduce.quality_degradation.claim import (
    NOT_RUN,
    TOO_FEW,
    Claim,
    contexts_of,
    names_of,
    number,
    of_faults,
    of_unknown,
    passes_sum_test,
)
from pqkv.reproduce.quality_degradation.verdicts import (
    BY_METRIC,
    LOGIT_TOLERANCE,
    REPORTED_MASS,
    by_logits,
    damaged,
    few,
    sees,
)
from pqkv.reproduce.tables import held

KLD, PERPLEXITY = BY_METRIC["kld_mean"], BY_METRIC["perplexity_ratio"]


def _reductions(record: Record) -> bool:
    return str(record.config["backend"]).startswith(("fault:warp-max", "fault:warp-sum"))


def blind_sum(records: Sequence[Record]) -> Claim:
    """Does the report's test of the softmax see reductions that went wrong?"""
    said = "a test that the softmax sums to 1 finds a broken reduction"
    return _sum_test("softmax sum", said, [r for r in records if _reductions(r)])


def blind_sum_elsewhere(records: Sequence[Record]) -> Claim:
    """Does it see the other defects, each alone?"""
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
    missed = [r for r in cells if passes_sum_test(r)]
    ours = f"misses {len(missed)} of {len(cells)} damaged cells: {names_of(missed)}{left_out}"
    return Claim(part, said, "yes", ours, held(inside=not missed and not left_out, outside=bool(missed)))


def sound_sum(records: Sequence[Record]) -> Claim:
    """Does a kernel without a fault pass it?"""
    part, said, theirs = "softmax sum, sound", "a sound kernel passes that test", "allclose(atol=1e-5)"
    cells = [r for r in of_faults(records, "none") if "softmax_mass_error" in r.metrics]
    if not cells:
        return Claim(part, said, theirs, NOT_RUN, None)
    failed = [r for r in cells if number(r, "softmax_mass_error") > REPORTED_MASS]
    worst = max(number(r, "softmax_mass_error") for r in cells)
    where = f", at {contexts_of(failed)} tokens" if failed else ""
    ours = f"fails {len(failed)} of {len(cells)} cells{where}; sums off by {worst:.1e} at most"
    return Claim(part, said, theirs, ours, not failed)


def perplexity_misses(records: Sequence[Record]) -> Claim:
    """Does perplexity show what is damaged?"""
    part, said = "perplexity", "perplexity shows the damage"
    cells, left_out = _damaged_cells(records)
    if not cells:
        return Claim(part, said, "yes", f"{NOT_RUN} on a damaged cell", None)
    seen = {r.digest: sees(PERPLEXITY, r, comparisons=len(cells)) for r in cells}
    missed = [r for r in cells if seen[r.digest] is False]
    unknown = [r for r in cells if seen[r.digest] is None]
    ours = (
        f"within 1% in {len(missed)} of {len(cells)} damaged cells: {names_of(missed, contexts=True)}"
        f"{of_unknown(unknown)}{left_out}"
    )
    if few(missed):
        return Claim(part, said, "yes", f"{ours}; {TOO_FEW}", None)
    sure = not missed and not unknown and not left_out
    return Claim(part, said, "yes", ours, held(inside=sure, outside=bool(missed)))


def known_damage(records: Sequence[Record]) -> Claim:
    """In how many cells damage is known from logits."""
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


def kld_misses(records: Sequence[Record]) -> Claim:
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
        f"{names_of(missed, contexts=True)}{of_unknown(unknown)}"
    )
    if older:
        ours += f"; {len(older)} cells have no error of logits to tell"
    if few(missed):
        return Claim(part, said, "ours", f"{ours}; {TOO_FEW}", None)
    return Claim(part, said, "ours", ours, held(inside=not missed and not unknown and not older, outside=bool(missed)))
