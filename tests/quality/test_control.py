"""The control deals the right codes to the wrong tokens; a measure that does not jump measures nothing."""

import pytest
import torch
from models import random_ids

from pqkv.codec import Codebook, CodebookSet
from pqkv.config import CacheConfig
from pqkv.quality.control import ShuffledCodebook, shuffled
from pqkv.quality.measures import compare
from pqkv.quality.modes import run_coded, run_exact

SMALL = CacheConfig(page_size=8, residual=16, sink_tokens=2)


def vectors(seed=0):
    return torch.randn(2, 2, 24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_codes_keep_their_distribution_and_lose_their_tokens(books):
    for plain, control in zip(books.keys + books.values, shuffled(books).keys + shuffled(books).values, strict=True):
        codes, dealt = plain.encode(vectors()), control.encode(vectors())
        assert torch.equal(codes.sort(2).values, dealt.sort(2).values)
        assert (codes != dealt).double().mean() > 0.8
        assert torch.equal(plain.decode(codes), control.decode(codes))
        assert torch.equal(control.encode(vectors()), dealt)


def test_the_control_survives_map(books):
    control = shuffled(books).map(lambda book: book.map(lambda t: t.clone()))
    for before, after in zip(shuffled(books).keys + shuffled(books).values, control.keys + control.values, strict=True):
        assert type(after) is type(before)
        assert isinstance(after, ShuffledCodebook)
        assert torch.equal(before.encode(vectors()), after.encode(vectors()))


def test_subspaces_and_sides_are_dealt_apart():
    """Attention does not see keys and values that move together, so keys and values must not."""
    book = Codebook(torch.arange(32.0)[None, None, :, None].expand(1, 4, 32, 1).contiguous())
    control = shuffled(CodebookSet((book,), (book,)))
    tokens = torch.arange(24.0)[None, None, :, None].expand(1, 1, 24, 4).contiguous()
    keys, values = control.keys[0].encode(tokens)[0, 0].T, control.values[0].encode(tokens)[0, 0].T
    orders = [tuple(row.tolist()) for row in (*keys, *values)]
    assert len(set(orders)) == 8


def kld(lm, ids, books, mode):
    exact, coded = run_exact(lm, ids), run_coded(lm, ids, books, SMALL, mode, chunk_size=20)
    return float(compare(exact[0, :-1], coded[0, :-1], ids[0, 1:], (1,)).kld.mean())


@pytest.mark.parametrize("mode", ["exact-schedule", "token", "chunk", "all-coded"])
def test_divergence_explodes_in_every_mode(tiny, books, mode):
    ids = random_ids(80)
    right, wrong = kld(tiny, ids, books, mode), kld(tiny, ids, shuffled(books), mode)
    assert right > 0
    assert wrong > 5 * right
