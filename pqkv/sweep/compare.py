"""Two folders of records cell by cell: what changed, with the interval that says whether it did."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pqkv.config import digest_of
from pqkv.errors import RecordError
from pqkv.metrics import metric_info
from pqkv.record import Record, load_records
from pqkv.report.series import mode_name, shape_name
from pqkv.sweep.change import Change, change

COMPARED = (
    "perplexity", "kld_mean", "agreement_at_1", "recall", "latency_ms", "speedup", "ttft_ms", "tpot_ms",
)  # fmt: skip
# what a cell's codebooks and machine are follows from what made them: cells are told apart by the rest
FOLLOWS = frozenset(("codebooks", "machine", "made_of", "threads"))
_OF_RUNS = {"seed"}


@dataclass(frozen=True, slots=True)
class Pair:
    """A cell that both folders have; a list holds more than one record where it was run several times."""

    label: str
    first: tuple[Record, ...]
    second: tuple[Record, ...]
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Cells of both, labels of those that one alone has, and the settings in which the folders differ as wholes."""

    pairs: tuple[Pair, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    settings: dict[str, tuple[str, str]]

    def worse(self, threshold: float) -> list[tuple[Pair, Change]]:
        """Figures that are worse by more than `threshold` with their whole interval: 0.01 is one per cent."""
        return [
            (pair, one)
            for pair in self.pairs
            for one in pair.changes
            if one.least_worse is not None and one.least_worse > threshold
        ]

    def untold(self, threshold: float) -> list[tuple[Pair, Change]]:
        """Figures whose interval holds `threshold`: whether they are worse by more than that nothing tells."""
        return [
            (pair, one)
            for pair in self.pairs
            for one in pair.changes
            if one.least_worse is not None and one.most_worse is not None
            if one.least_worse <= threshold < one.most_worse
        ]


def compare(first: Path, second: Path, *, metrics: Sequence[str] = COMPARED, ignore: Iterable[str] = ()) -> Comparison:
    """Match the cells of two folders by their settings and set their figures beside each other.

    Settings that are one value throughout a folder and another throughout the second are what is compared, and tell
    no cells apart; nor do those of `ignore`, and what follows from others (codebooks' digests, the machine).
    Intervals are at 95% for all of them together (Bonferroni). Raises `RecordError` where no cell is in both, or
    where settings that are ignored leave several cells with one name or are in no record; those that differ in
    their seed alone are runs of one cell.
    """
    for metric in metrics:
        metric_info(metric)
    sides = [_ran(first), _ran(second)]
    known = {key for side in sides for record in side for key in record.config}
    if unknown := sorted(set(ignore) - known):
        raise RecordError(f"--ignore: no record has a setting '{unknown[0]}'; known: {', '.join(sorted(known))}")
    left_out = FOLLOWS | set(ignore)
    settings = {key: values for key, values in _constants(sides).items() if key not in left_out}
    left_out |= set(settings)
    by_key = [_grouped(side, left_out) for side in sides]
    both = [key for key in by_key[0] if key in by_key[1]]
    if not both:
        raise RecordError(f"no cell of {first} is in {second}; settings that may differ are named with --ignore")
    for side, folder in zip(by_key, (first, second), strict=True):
        for records in side.values():
            if set(_differing(records)) - _OF_RUNS:
                raise RecordError(
                    f"{folder} has several cells '{_label(records[0])}' that differ in "
                    f"{', '.join(_differing(records))} alone, which tells no cells apart here"
                )
    asked = [
        (key, name)
        for key in both
        for name in metrics
        if all(record.metrics.get(name) is not None for side in by_key for record in side[key])
    ]
    found: dict[str, list[Change]] = defaultdict(list)
    for key, name in asked:
        one = change(name, by_key[0][key], by_key[1][key], comparisons=len(asked))
        if one is not None:
            found[key].append(one)
    pairs = [
        Pair(_label(by_key[0][key][0]), tuple(by_key[0][key]), tuple(by_key[1][key]), tuple(found[key])) for key in both
    ]
    alone = [
        tuple(_label(records[0]) for key, records in mine.items() if key not in theirs)
        for mine, theirs in (by_key, by_key[::-1])
    ]
    return Comparison(tuple(pairs), alone[0], alone[1], settings)


def _ran(folder: Path) -> list[Record]:
    found = [record for record in load_records(folder) if record.status == "ok"]
    if not found:
        raise RecordError(f"no records in {folder}; make some with pqkv sweep -o {folder}")
    return found


def _constants(sides: Sequence[Sequence[Record]]) -> dict[str, tuple[str, str]]:
    """Settings with one value in each side, which is not the same."""
    keys = dict.fromkeys(key for side in sides for record in side for key in record.config)
    values = {key: [{_text(record.config.get(key)) for record in side} for side in sides] for key in keys}
    return {
        key: (next(iter(one)), next(iter(other)))
        for key, (one, other) in values.items()
        if len(one) == len(other) == 1 and one != other
    }


def _grouped(records: Sequence[Record], left_out: frozenset[str]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        told = {key: value for key, value in record.config.items() if key not in left_out and value is not None}
        found[digest_of([record.kind, told])].append(record)
    return found


def _differing(records: Sequence[Record]) -> list[str]:
    keys = {key for record in records for key in record.config}
    return sorted(key for key in keys if len({_text(record.config.get(key)) for record in records}) > 1)


def _label(record: Record) -> str:
    c = record.config
    parts = [shape_name(c), mode_name(c), f"{c['context']} tokens" if "context" in c else "", str(c.get("data", ""))]
    return ", ".join(part for part in parts if part)


def _text(value: object) -> str:
    return "" if value is None else str(value)
