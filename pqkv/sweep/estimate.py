"""What a cell will take, from what cells like it took: time and resident memory, each with what it rests on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from pqkv.sweep.cells import SweepCell
from pqkv.sweep.past import Past

_LIKENESS = ("the same settings", "the same model, mode and metrics", "the same model")
_FORWARD_TOKENS = 4096  # short windows run together up to so many tokens: an evaluation's memory grows from there on


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of a cell and the most bytes resident in its process; None where nothing says. `basis` is in words."""

    seconds: float | None
    peak: float | None
    basis: str


class Estimator:
    """Estimates by what ran before. Past cells are grouped once; a cell costs a look-up and a small fit."""

    def __init__(self, past: Iterable[Past]) -> None:
        groups: list[dict[str, list[Past]]] = [defaultdict(list) for _ in _LIKENESS]
        for one in past:
            for level, key in zip(groups, one.alike, strict=True):
                level[key].append(one)
        self._groups = groups
        self._known: dict[tuple[str, int, int], Estimate] = {}

    def of(self, cell: SweepCell) -> Estimate:
        """From the closest likeness that anything has; sizes that were not measured are scaled to, and it says so."""
        for likeness, group, key in zip(_LIKENESS, self._groups, cell.alike, strict=True):
            if found := group.get(key):
                memory = (key, cell.context, cell.tokens)
                if memory not in self._known:
                    self._known[memory] = _estimate(cell, found, likeness)
                return self._known[memory]
        return Estimate(None, None, "no cell like it was measured")


def _estimate(cell: SweepCell, found: Sequence[Past], likeness: str) -> Estimate:
    same = [one for one in found if (one.context, one.tokens) == (cell.context, cell.tokens)]
    watched = [one for one in found if one.peak is not None]
    count = f"{len(same or found)} cell{'' if len(same or found) == 1 else 's'} with {likeness}"
    if same:
        peaks = [one.peak for one in same if one.peak is not None]
        return Estimate(median(one.seconds for one in same), max(peaks) if peaks else _peak(cell, watched), count)
    sizes = sorted({one.context for one in found})
    scaled = f"scaled from {sizes[0]:,} tokens" + (f" to {sizes[-1]:,}" if len(sizes) > 1 else "")
    return Estimate(_seconds(cell, found), _peak(cell, watched), f"{count}, {scaled}")


def _seconds(cell: SweepCell, found: Sequence[Past]) -> float:
    """Time as a constant, a part by tokens and one by tokens times their context (attention), none of them negative;
    fitted so that relative errors are least. As few sizes say no more, fewer parts.
    """
    rows = np.array([[1.0, one.tokens, one.tokens * one.context] for one in found])
    seconds = np.array([max(one.seconds, 1e-3) for one in found])
    sizes = len({(one.context, one.tokens) for one in found})
    columns = [1] if sizes == 1 else [0, 1] if sizes == 2 else [0, 1, 2]
    while True:
        fitted, *_ = np.linalg.lstsq(rows[:, columns] / seconds[:, None], np.ones(len(found)), rcond=None)
        if fitted.min() >= 0 or len(columns) == 1:
            break
        del columns[int(fitted.argmin())]
    here = np.array([1.0, cell.tokens, cell.tokens * cell.context])[columns]
    return float(max(here @ fitted, 0.0))


def _peak(cell: SweepCell, watched: Sequence[Past]) -> float | None:
    """The peak at this context: between those measured a straight line, past the longest the line through the ends;
    never below the shortest's. A single context is not scaled.
    """
    least = _FORWARD_TOKENS if cell.command in ("eval", "lab") else 0
    by_size: dict[int, float] = {}
    for one in watched:
        size = max(one.context, least)
        by_size[size] = max(by_size.get(size, 0.0), float(one.peak or 0))
    if not by_size:
        return None
    sizes, here = sorted(by_size), max(cell.context, least)
    if here > sizes[-1] and len(sizes) > 1:
        first, last = sizes[0], sizes[-1]
        slope = max(0.0, (by_size[last] - by_size[first]) / (last - first))
        return by_size[last] + slope * (here - last)
    return float(np.interp(here, sizes, [by_size[size] for size in sizes]))
