"""Additive codes: the search against all sums, learning against its start, codes against their places."""

import itertools

import pytest
import torch

from pqkv.codec.additive import AdditiveCodebook, fit, search


@pytest.fixture(scope="module")
def points():
    return torch.randn(3, 700, 4, generator=torch.Generator().manual_seed(0)).double() ** 3


def all_sums(books):
    S, C, _ = books.shape
    codes = torch.tensor(list(itertools.product(range(C), repeat=S)))
    return codes, books[torch.arange(S), codes].sum(1)


@pytest.mark.parametrize("stages", [1, 2, 3])
def test_a_beam_as_wide_as_all_sums_finds_the_nearest(points, stages):
    books = torch.randn(stages, 6, 4, generator=torch.Generator().manual_seed(1)).double()
    codes, sums = all_sums(books)
    nearest = codes[torch.cdist(points[0], sums).argmin(-1)]
    assert torch.equal(search(points[0], books, 6**stages), nearest)


def test_a_narrow_beam_is_hardly_worse(points):
    books = fit(points[:1].float(), 4, 2, 5, 0)[0].double()
    _, sums = all_sums(books)
    least = torch.cdist(points[0], sums).amin(-1).square().sum()
    found = books[torch.arange(2), search(points[0], books, 8)].sum(1)
    greedy = books[torch.arange(2), search(points[0], books, 1)].sum(1)
    narrow, hasty = ((points[0] - x).square().sum() for x in (found, greedy))
    assert least * (1 - 1e-9) <= narrow <= 1.01 * least
    assert narrow < 0.97 * hasty


def test_tiles_change_nothing(points, monkeypatch):
    books = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1)).double()
    whole = search(points[0], books, 4)
    monkeypatch.setattr("pqkv.codec.additive._TILE", 200)
    assert torch.equal(search(points[0], books, 4), whole)


def test_least_squares_gain_on_one_codebook_after_another(points, monkeypatch):
    def error(books):
        return sum((x - b[torch.arange(2), search(x, b, 16)].sum(1)).square().sum()
                   for x, b in zip(points.float(), books, strict=True))  # fmt: skip

    learnt = error(fit(points.float(), 4, 2, 5, 0))
    monkeypatch.setattr("pqkv.codec.additive._ROUNDS", 0)
    assert learnt < 0.95 * error(fit(points.float(), 4, 2, 5, 0))


def test_centroids_that_no_point_chose_stay(points):
    far = torch.full((1, 1, 4), 1e3)
    few = points[:1, :3].float()  # three points, sixteen centroids
    found = fit(torch.cat([few] * 20, 1), 4, 2, 3, 0)
    assert found.isfinite().all()
    assert found.abs().max() < far.max()


def test_codes_are_those_of_their_head_group_and_stage():
    generator = torch.Generator().manual_seed(2)
    book = AdditiveCodebook(torch.randn(2, 3, 2, 8, 4, generator=generator))
    codes = torch.randint(0, 8, (2, 2, 5, 6), generator=generator)
    restored = book.decode(codes)
    assert restored.shape == (2, 2, 5, 12)
    b, h, t, g = 1, 1, 3, 2
    one = book.centroids[h, g, 0, codes[b, h, t, 4]] + book.centroids[h, g, 1, codes[b, h, t, 5]]
    assert torch.equal(restored[b, h, t, 8:], one)
    again = book.encode(restored)
    assert again.dtype == torch.int16
    assert (book.decode(again) - restored).abs().max() < 1e-5
    assert book.nbits == 3
