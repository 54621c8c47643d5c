"""Subspaces of unequal length: the best of all cuts, by trying them."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.codec.grouping import unequal_channels
from pqkv.codec.transforms import order, rows


def loss(members, variance, nbits):
    total = 0.0
    for group in members:
        v = variance[group].double().clamp(min=1e-20)
        total += len(group) * float(v.log().mean().exp()) * 2 ** (-2 * nbits / len(group))
    return total


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=8), st.integers(1, 4), st.integers(1, 6))
def test_no_other_cut_of_the_sorted_channels_errs_less(variances, num_subspaces, nbits):
    variance = torch.tensor(variances)
    found = unequal_channels(variance, num_subspaces, nbits, longest=8)
    assert sorted(itertools.chain(*found)) == list(range(len(variances)))
    assert all(found)
    order = list(itertools.chain(*found))
    assert (variance[order].diff() <= 0).all()
    best = min(
        loss([order[a:b] for a, b in itertools.pairwise((0, *cuts, len(order)))], variance, nbits)
        for cuts in itertools.combinations(range(1, len(order)), num_subspaces - 1)
    )
    assert loss(found, variance, nbits) == pytest.approx(best, rel=1e-6)


def test_loud_channels_stand_in_short_subspaces_and_none_is_longer_than_told():
    variance = torch.logspace(3, -3, 16)
    lengths = [len(group) for group in unequal_channels(variance, 4, 4, longest=6)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] == 6


def test_places_are_filled_up_with_none():
    points = torch.randn(2, 200, 8, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -2, 8)
    places = order("unequal", points, 4, 6)
    assert places.shape[1] % 4 == 0
    picked = rows(torch.eye(8).expand(2, 8, 8), places)
    assert torch.equal(picked.sum(1), torch.ones(2, 8))  # every channel once
    assert torch.equal(picked.sum(-1), (places >= 0).float())
