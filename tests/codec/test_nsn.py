"""NSNQuant against its recipe."""

import numpy as np
import pytest
import torch
from recipes import agree, hadamard_of, half, nearest_of

from pqkv.codec.gaussian import gaussian_codebook
from pqkv.codec.peers.nsn import NSN, NSNOptions
from pqkv.errors import ConfigError


def restored(tokens, centroids):
    """A group of tokens (n, D)."""
    n, D = tokens.shape
    matrix, d_sub = hadamard_of(D), centroids.shape[1]
    first = [half(np.sqrt(np.mean(x**2))) for x in tokens]
    unit = np.array([x / norm for x, norm in zip(tokens, first, strict=True)])
    mean = half(sum(unit) / n)
    found = np.zeros((n, D))
    for t in range(n):
        shifted = unit[t] - mean
        second = half(np.sqrt(np.mean(shifted**2)))
        gaussian = (shifted / second) @ matrix
        coded = np.concatenate([nearest_of(centroids, part) for part in gaussian.reshape(-1, d_sub)])
        found[t] = first[t] * (mean + second * (coded @ matrix))
    return found


@pytest.mark.parametrize(("bits", "d_sub"), [(2, 4), (1, 8)])
@pytest.mark.parametrize("tokens", [32, 21])
def test_groups_follow_the_recipe(bits, d_sub, tokens):
    generator = torch.Generator().manual_seed(tokens)
    x = torch.randn(2, 2, tokens, 16, generator=generator) * torch.randn(2, 2, tokens, 1, generator=generator).exp()
    x = x + 3 * torch.randn(16, generator=generator)
    centroids = gaussian_codebook(d_sub, 8).double().numpy()
    expected = np.zeros(x.shape)
    for b, h in np.ndindex(2, 2):
        for first in range(0, tokens, 16):
            expected[b, h, first : first + 16] = restored(x[b, h, first : first + 16].double().numpy(), centroids)
    codec = NSN(NSNOptions(bits=bits, group=16), "keys", {})
    agree(codec.restore(0, x, torch.arange(tokens)), expected, share=0.98)  # a code is 4 or 8 channels


def test_a_mean_that_all_tokens_share_costs_nothing():
    x = torch.randn(1, 1, 64, 32, generator=torch.Generator().manual_seed(0))
    x = x / x.square().mean(-1, keepdim=True).sqrt()
    far = x + 30 * torch.eye(32)[3]
    codec = NSN(NSNOptions(), "keys", {})
    errors = [float((codec.restore(0, y, torch.arange(64)) - y).square().mean()) for y in (x, far)]
    assert errors[1] < 1.3 * errors[0]


def test_a_head_that_codes_do_not_divide_is_refused():
    with pytest.raises(ConfigError, match="4 channels at once"):
        NSN(NSNOptions(), "keys", {}).encode(0, torch.zeros(1, 1, 2, 6), torch.arange(2))
