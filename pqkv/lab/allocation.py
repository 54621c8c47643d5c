"""Bits a layer and a side: the split of a budget that loses least, from what each layer loses alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pqkv.errors import ConfigError

_UNIT = Fraction(1, 4)  # bits that budgets are counted in


@dataclass(frozen=True, slots=True)
class Allocation:
    """Bits of each layer's keys and values, and the loss that is expected of them together."""

    keys: tuple[float, ...]
    values: tuple[float, ...]
    expected: float

    @property
    def mean_bits(self) -> float:
        """Of codes, an element."""
        both = self.keys + self.values
        return sum(both) / len(both)


def allocate(
    keys: Sequence[float],
    values: Sequence[float],
    key_ratios: Mapping[float, float],
    value_ratios: Mapping[float, float],
    mean_bits: float,
) -> Allocation:
    """The widths for which the losses of layers, added up, are least at `mean_bits` bits an element or fewer.

    `keys` and `values` are what each layer loses alone (nats) at some width; the ratios say, for each width that may be
    dealt out, by how much a side loses more or less at it. Losses of layers add up as long as they are small (measured:
    within a sixth at 2 bits, SmolLM2). Exact: a knapsack over all layers and both sides. Raises `ConfigError` where the
    narrowest width is more than the budget.
    """
    items = [(loss, key_ratios) for loss in keys] + [(loss, value_ratios) for loss in values]
    budget = int(Fraction(mean_bits).limit_denominator(64) * len(items) / _UNIT)
    narrowest = sum(_units(min(ratios)) for _, ratios in items)
    if narrowest > budget:
        raise ConfigError(f"{mean_bits:g} bits an element are fewer than the narrowest width of every layer takes")
    # best[u] = least loss with u units spent so far, and the widths that give it
    best: dict[int, tuple[float, tuple[float, ...]]] = {0: (0.0, ())}
    for loss, ratios in items:
        reached: dict[int, tuple[float, tuple[float, ...]]] = {}
        for spent, (total, widths) in best.items():
            for width, ratio in ratios.items():
                units, sum_of = spent + _units(width), total + loss * ratio
                if units <= budget and (units not in reached or sum_of < reached[units][0]):
                    reached[units] = sum_of, (*widths, width)
        best = reached
    expected, widths = min(best.values())
    return Allocation(widths[: len(keys)], widths[len(keys) :], expected)


def _units(width: float) -> int:
    units = Fraction(width).limit_denominator(64) / _UNIT
    if units.denominator != 1:
        raise ConfigError(f"widths are counted in quarters of a bit, and {width:g} is none")
    return int(units)
