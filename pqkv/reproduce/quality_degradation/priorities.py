"""The report's order of repairs, P0 to P2, beside what each defect costs beyond 2,048 tokens: what it is about.

Slots past the length count with zeros and with stale vectors: NaN would have ended the text at once, and what the
report saw was a worse one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pqkv.record import Record
from pqkv.reproduce.quality_degradation.claim import NOT_RUN, TOO_FEW, Claim, kld, of_faults
from pqkv.reproduce.quality_degradation.verdicts import few, mean_interval
from pqkv.reproduce.tables import held

_FROM = 2049
_ONE_WARP = ("warp-max/32", "warp-sum/32")
_WARPS = ("warp-max/64", "warp-max/128", "warp-sum/64", "warp-sum/128")
_BUFFER = ("shared-memory-2048",)
_LENGTHS = ("block-granular-length/zero", "block-granular-length/stale")
_POSITIONS = ("rope-minus-one",)


@dataclass(frozen=True, slots=True)
class Priority:
    """A line of the report's table: each of `faults` has to cost more than each of `below`, less where not `more`."""

    part: str
    claim: str
    theirs: str
    faults: tuple[str, ...]
    others: tuple[str, ...]
    more: bool = True


_TABLE = (
    Priority("P0", "warp reductions, in blocks of 64 and 128, cost more than P1 and P2", "critical", _WARPS,
             _LENGTHS + _POSITIONS),
    Priority("P0", "warp reductions, in blocks of 32 as a comment has them, cost more than P1 and P2", "critical",
             _ONE_WARP, _LENGTHS + _POSITIONS),
    Priority("P0", "the overflow of shared memory costs more than P1 and P2", "critical", _BUFFER,
             _LENGTHS + _POSITIONS),
    Priority("P1", "lengths in whole pages cost more than P2", "high", _LENGTHS, _POSITIONS),
    Priority("P2", "positions cost less than all the others", "medium", _POSITIONS, _WARPS + _BUFFER + _LENGTHS,
             more=False),
)  # fmt: skip


def priorities(records: Sequence[Record]) -> Iterator[Claim]:
    """A claim for each line."""
    for line in _TABLE:
        yield _judged(line, [r for r in records if r.config["context"] >= _FROM])


def _judged(line: Priority, records: Sequence[Record]) -> Claim:
    own, others = (of_faults(records, *names) for names in (line.faults, line.others))
    pairs = [(a, b) for a in own for b in others if a.config["context"] == b.config["context"]]
    if not pairs:
        return Claim(line.part, line.claim, line.theirs, f"{NOT_RUN} beyond 2,048 tokens", None)
    signs = [_sign(a, b, len(pairs)) * (1 if line.more else -1) for a, b in pairs]
    right, wrong = signs.count(1), signs.count(-1)
    ours = (
        f"mean KLD {_range(own)} nats beside {_range(others)}: as claimed in {right} of {len(pairs)} comparisons, the "
        f"reverse in {wrong}, not known in {len(pairs) - right - wrong}"
    )
    if few([*own, *others]):
        return Claim(line.part, line.claim, line.theirs, f"{ours}; {TOO_FEW}", None)
    return Claim(line.part, line.claim, line.theirs, ours, held(inside=right == len(pairs), outside=wrong > 0))


def _sign(one: Record, other: Record, comparisons: int) -> int:
    """1 where the first costs more on the same windows, -1 where less, 0 where the interval holds both."""
    a, b = (record.samples.get("kld_mean") for record in (one, other))
    if a is None or b is None:  # no samples: some window's KLD is no number
        return (a is None) - (b is None)
    low, high = mean_interval(np.array(a) - np.array(b), comparisons)
    return (low > 0) - (high < 0)


def _range(records: Sequence[Record]) -> str:
    low, high = (f"{pick(map(kld, records)):.2g}" for pick in (min, max))
    return low if low == high else f"{low} to {high}"
