"""What the coded CUDA kernel copies into shared memory, and how many splits its blocks make: by brute force."""

import numpy as np
import pytest
import torch

from pqkv.kernels.cuda.centroids import key_words, value_words
from pqkv.kernels.cuda.splits import BUSY_WARPS, SHORTEST_SPLIT, choose_coded_splits, stretches
from pqkv.kernels.types import PagedSide


@pytest.mark.parametrize("d_sub", [1, 2, 3, 4])
def test_words_hold_every_element_in_the_order_of_the_tables(d_sub):
    H, M, C, stage = 2, 8, 16, 4
    centroids = torch.randn(H, M, C, d_sub, generator=torch.Generator().manual_seed(0))
    words = -(-d_sub // 2)
    keys = key_words(centroids).numpy().view(np.float16)  # (H, M, C, 2 * words)
    values = value_words(centroids, stage)
    assert (values.shape, values.dtype, values.is_contiguous()) == ((H, M // stage, words, C, stage), torch.int32, True)
    halves = values.numpy().view(np.float16).reshape(H, M // stage, words, C, stage, 2)
    for h, m, c, e in np.ndindex(H, M, C, d_sub):
        expected = centroids[h, m, c, e].half().item()
        assert keys[h, m, c, e] == expected
        assert halves[h, m // stage, e // 2, c, m % stage, e % 2] == expected
    if d_sub % 2:
        assert not keys[..., -1].any()


def test_what_is_made_of_centroids_is_made_once_for_them():
    made = []

    def make(centroids):
        made.append(centroids)
        return centroids * 2

    shared = {}
    first, second = torch.ones(1, 2, 4, 2), torch.full((1, 2, 4, 2), 3.0)
    pages = torch.zeros(1)
    kept = PagedSide(pages, "row", first, derived=shared).derive("double", make)
    assert PagedSide(pages, "row", first, derived=shared).derive("double", make) is kept
    assert len(made) == 1
    other = PagedSide(pages, "row", second, derived=shared)  # another codebook in the same dictionary
    assert torch.equal(other.derive("double", make), second * 2)
    assert other.to(torch.device("cpu")).derived == {}


@pytest.mark.parametrize("units", [1, 8, 64, 1000])
@pytest.mark.parametrize("tokens", [1, 64, 255, 4000, 32768, 131072])
@pytest.mark.parametrize(("most_tokens", "warps"), [(512, 2), (1024, 4), (2048, 8)])
def test_splits_of_coded_pages_are_those_of_least_time(units, tokens, most_tokens, warps):
    found = choose_coded_splits(units, tokens, 132, most_tokens=most_tokens, build_tokens=400, warps=warps)
    assert tokens / found <= most_tokens
    allowed = [n for n in range(1, 4 * found + 200) if tokens / n <= most_tokens]
    allowed = [n for n in allowed if n == allowed[0] or (tokens / n >= SHORTEST_SPLIT and n <= 128)]

    def time(n):
        each_block = tokens / n + 400
        return each_block * max(-(-units * n // 132), BUSY_WARPS / warps)

    assert found in allowed
    assert time(found) == min(map(time, allowed))


@pytest.mark.parametrize("longest", [1, 16, 1000, 1024, 5000])
@pytest.mark.parametrize("splits", [1, 3, 16])
@pytest.mark.parametrize("windowed", [False, True])
def test_stretches_cover_every_token_and_none_is_empty(longest, splits, windowed):
    share, count = stretches(longest, splits, tokens=1024, together=16, windowed=windowed)
    assert share % 16 == 0 and share <= 1024
    for first in range(16 if windowed else 1):  # a window starts its first stretch up to so much before its first token
        assert share * count >= longest + first
    assert share * (count - 1) < longest + (15 if windowed else 0)


def test_dear_tables_make_fewer_splits():
    given = {"most_tokens": 1024, "warps": 4}
    cheap, dear = (choose_coded_splits(50, 8192, 132, build_tokens=b, **given) for b in (0, 4000))
    assert dear < cheap
