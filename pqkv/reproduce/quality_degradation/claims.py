"""What the report claims of quality and of its test of the softmax, beside what the cells of part a say.

That something is wrong is a matter of fact in the windows that ran: one case refutes "always". How much, or that one
thing costs more than another, is inferred from windows, and said by intervals alone, corrected for the comparisons that
the verdict rests on; contexts stand apart, as their windows are cut from the same text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pqkv.record import Record
from pqkv.reproduce.models import model_order
from pqkv.reproduce.quality_degradation import blindness, defects
from pqkv.reproduce.quality_degradation.claim import Claim, model_of
from pqkv.reproduce.quality_degradation.priorities import priorities

_SINGLE = (
    defects.fixed, defects.from_2048, defects.warps, defects.drift, defects.all_five, blindness.blind_sum,
    blindness.blind_sum_elsewhere, blindness.sound_sum, blindness.perplexity_misses, blindness.known_damage,
    blindness.kld_misses,
)  # fmt: skip


def claims_of(records: Sequence[Record]) -> Iterator[Claim]:
    """The claims, each from the cells of one model on one device; those of a GPU where there are any, after those of
    the CPU.
    """
    ran = [record for record in records if record.kind == "eval" and record.status == "ok"]
    asked = {(model_of(record), record.config["device"]) for record in ran}
    for model, device in sorted(asked, key=lambda found: (model_order(found[0]), found[1])):
        members = [r for r in ran if (model_of(r), r.config["device"]) == (model, device)]
        part = "" if device == "cpu" else f" ({device})"
        for found in (*(one(members) for one in _SINGLE), *priorities(members)):
            yield replace(found, part=found.part + part, device=device, model=model)
