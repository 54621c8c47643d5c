"""Compilation is told of once, when it takes its time, and not what was kept."""

import numpy as np
import pytest
from numba.core.event import end_event, start_event
from pqkv_cli.first_compilation import first_compilation

KIND = "numba:compile"


@pytest.fixture
def watched():
    """`step(seconds, events)`: time goes by, then Numba's events; what was said."""
    now, said = [0.0], []

    def step(seconds, *events):
        now[0] += seconds
        for event in events:
            event(KIND)

    with first_compilation(said.append, lambda: now[0]):
        yield step, said
    step(100, start_event, end_event)  # nobody listens any more
    assert len(said) <= 1


def test_a_long_one_is_told_while_it_lasts(watched):
    step, said = watched
    step(50, start_event)
    step(2, start_event, end_event)
    assert not said
    step(2, start_event)
    assert len(said) == 1
    assert "compiled for this shape, once" in said[0]
    step(9, end_event, end_event)
    assert len(said) == 1


def test_short_ones_add_up_and_pauses_do_not(watched):
    step, said = watched
    for _ in range(2):
        step(60, start_event)
        step(1.2, end_event)
    assert not said
    step(60, start_event)
    step(1.2, end_event)
    assert len(said) == 1


def test_numba_tells_of_what_it_compiles():
    from numba import njit

    now, said = iter(np.arange(0, 1e6, 4.0)), []
    with first_compilation(said.append, lambda: next(now)):
        double = njit(lambda x: 2 * x)
        assert double(3) == 6
        assert len(said) == 1
        assert double(4) == 8
    assert len(said) == 1
