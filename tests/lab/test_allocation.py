"""Dealing out bits: the least loss there is, held to trying everything."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.errors import ConfigError
from pqkv.lab.allocation import allocate

RATIOS = {2: 11.0, 3: 3.4, 4: 1.0, 6: 0.1}
losses = st.lists(st.floats(1e-5, 1e-2), min_size=1, max_size=3)


@settings(deadline=None, max_examples=60)
@given(losses, losses, st.sampled_from([2, 2.5, 3, 3.25, 4, 5, 6]))
def test_nothing_else_loses_less(keys, values, bits):
    wider = {width: ratio / 2 for width, ratio in RATIOS.items()}
    found = allocate(keys, values, RATIOS, wider, bits)
    ratios = [RATIOS] * len(keys) + [wider] * len(values)
    every = [
        sum(loss * ratio[width] for loss, ratio, width in zip(keys + values, ratios, widths, strict=True))
        for widths in itertools.product(RATIOS, repeat=len(ratios))
        if sum(widths) <= bits * len(ratios)
    ]
    assert found.expected == pytest.approx(min(every))
    assert found.mean_bits <= bits
    assert (len(found.keys), len(found.values)) == (len(keys), len(values))


def test_equal_layers_get_equal_bits_and_a_loud_one_more():
    assert allocate([1, 1], [1, 1], RATIOS, RATIOS, 4).keys == (4, 4)
    found = allocate([1, 1, 1], [1, 1, 50], RATIOS, RATIOS, 4)
    assert found.values[2] == 6
    assert sorted(found.keys + found.values[:2])[:2] == [3, 3]


def test_a_budget_below_the_narrowest_width_is_refused():
    with pytest.raises(ConfigError, match="fewer than the narrowest"):
        allocate([1], [1], RATIOS, RATIOS, 1.5)
    with pytest.raises(ConfigError, match="quarters of a bit"):
        allocate([1], [1], {2.1: 1.0}, RATIOS, 3)
