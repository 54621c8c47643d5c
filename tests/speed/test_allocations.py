"""What is held at once, counted on allocations that are known."""

import torch

from pqkv.speed.allocations import PeakMemory


def test_what_is_made_counts_until_nothing_refers_to_it():
    given = torch.zeros(1000)
    with PeakMemory() as counted:
        a = given + 1  # 4,000 bytes
        b = a * 2
        assert counted.held == 8000
        del a
        assert counted.held == 4000
        c = torch.empty(500, dtype=torch.float64)
        assert (counted.held, counted.peak) == (8000, 8000)
        del b, c
    assert (counted.held, counted.peak) == (0, 8000)


def test_views_and_what_was_there_before_cost_nothing():
    given = torch.zeros(10, 10)
    with PeakMemory() as counted:
        part = given[2:5].T.reshape(-1)[:0]  # what it is a part of is kept: 30 numbers
        given.add_(1)
        given.copy_(given.clone())  # the copy lives for a moment
    assert counted.peak == 30 * 4 + 400
    assert part.numel() == 0


def test_a_view_keeps_its_memory():
    with PeakMemory() as counted:
        whole = torch.zeros(100)
        part = whole[3:4]
        del whole
        assert counted.held == 400
        del part
        assert counted.held == 0


def test_results_in_tuples_count():
    with PeakMemory() as counted:
        values, places = torch.arange(8.0).sort()
        assert counted.held == 8 * 4 + 8 * 8
        del values, places
