import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqkv.speed.clock import WallClock
from pqkv.speed.timing import Contestant, Timing, copies_beyond_cache, last_level_cache, median_interval, race, ratios


def test_contestants_take_turns_and_rotate_their_buffers(monkeypatch):
    ran = []

    def calls(name, count):
        return [lambda i=i: ran.append((name, i)) for i in range(count)]

    found = race([Contestant("a", calls("a", 3)), Contestant("b", calls("b", 2))], 6, slow=math.inf)
    assert {name: len(t.seconds) for name, t in found.items()} == {"a": 6, "b": 6}
    assert ran[:5] == [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]  # nobody's first call is timed
    timed = ran[9:]  # two untimed calls of each beside those
    assert [name for name, _ in timed] == ["a", "b"] * 6
    assert [i for name, i in timed if name == "a"] == [2, 0, 1, 2, 0, 1]
    assert [i for name, i in timed if name == "b"] == [0, 1, 0, 1, 0, 1]


def test_who_is_far_behind_runs_in_every_fifth_round(monkeypatch):
    monkeypatch.setattr(WallClock, "seconds", lambda self: self._calls[0]())
    found = race([Contestant("fast", [lambda: 1.0]), Contestant("slow", [lambda: 9.0])], 11)
    assert len(found["fast"].seconds) == 11
    assert found["slow"].seconds == (9.0,) * 3
    found = race([Contestant("fast", [lambda: 1.0]), Contestant("slow", [lambda: 9.0])], 11, always=["slow"])
    assert len(found["slow"].seconds) == 11


def test_who_warmed_up_slowly_is_compared_in_the_rounds_that_it_ran(monkeypatch):
    """On a loaded machine it can be the fastest in the end: a cell once failed for that."""
    monkeypatch.setattr(WallClock, "seconds", lambda self: self._calls[0]())
    ran = iter([9.0, 9.0, 9.0, *(0.5, 0.25, 0.125)])  # three untimed ones, then rounds 0, 5 and 10
    of_round = iter([1.0, 1.0, 1.0, *range(1, 12)])
    quick = Contestant("quick", [lambda: 1.0])
    found = race([Contestant("own", [lambda: next(of_round)]), quick, Contestant("late", [lambda: next(ran)])], 11,
                 always=["own"])  # fmt: skip
    assert ratios(found["late"], found["own"]) == [0.5 / 1, 0.25 / 6, 0.125 / 11]
    assert ratios(found["quick"], found["own"]) == [1 / i for i in range(1, 12)]


@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=50))
def test_quantiles_are_those_of_the_standard_library(seconds):
    t = Timing("t", tuple(seconds))
    assert t.median == pytest.approx(1e3 * statistics.median(seconds))
    assert (t.quantile(0), t.quantile(1)) == (pytest.approx(1e3 * min(seconds)), pytest.approx(1e3 * max(seconds)))
    if len(seconds) > 1:
        assert t.quantile(0.1) == pytest.approx(1e3 * statistics.quantiles(seconds, n=10, method="inclusive")[0])


def test_the_interval_of_a_median_covers_it_as_often_as_it_says():
    draw = random.Random(0)
    for n in (6, 7, 21):
        hits = 0
        for _ in range(2000):
            low, high = median_interval([draw.random() for _ in range(n)])
            hits += low <= 0.5 <= high
        assert 0.94 <= hits / 2000 <= 1.0
    assert median_interval([draw.random() for _ in range(21)]) != (None, None)


def test_few_values_have_no_interval():
    assert median_interval([1, 2, 3, 4, 5]) == (None, None)
    assert median_interval([6, 1, 2, 3, 4, 5]) == (1, 6)
    assert median_interval(range(1, 22)) == (6, 16)


def test_buffers_in_rotation_are_twice_the_cache():
    assert copies_beyond_cache(1) >= 2 * last_level_cache()
    assert copies_beyond_cache(1 << 40) == 1
    n = copies_beyond_cache(1 << 20)
    assert (n - 1) << 20 < 2 * last_level_cache() <= n << 20
