"""`int` and `kivi` by their recipes, one group after another in numpy."""

import numpy as np
import pytest
import torch

from pqkv.codec.catalog import CodecSpec


def vectors(tokens, channels=64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * (torch.randn(2, 2, tokens, channels, generator=generator) + torch.arange(channels) % 5)


def rounded(numbers, bits):
    """One group: zero and scale in float16, integers between them."""
    zero = np.float16(numbers.min())
    scale = np.float16((numbers.max() - numbers.min()) / np.float32(2**bits - 1))
    out = np.empty_like(numbers)
    for i, number in enumerate(numbers):
        code = np.rint((number - np.float32(zero)) / np.float32(scale)) if scale else 0
        out[i] = np.float32(min(max(code, 0), 2**bits - 1)) * np.float32(scale) + np.float32(zero)
    return out


def by_channels(x, group, bits):
    """Each token's channels in groups."""
    out = x.copy()
    for row in np.ndindex(x.shape[:-1]):
        for start in range(0, x.shape[-1], group):
            out[row][start : start + group] = rounded(x[row][start : start + group], bits)
    return out


def by_tokens(x, group, bits):
    """Each channel's tokens in groups, the last as short as it comes."""
    out = x.copy()
    for b, h, channel in np.ndindex(*x.shape[:2], x.shape[-1]):
        for start in range(0, x.shape[2], group):
            part = slice(start, start + group)
            out[b, h, part, channel] = rounded(x[b, h, part, channel], bits)
    return out


def restored(text, x):
    codec = CodecSpec.parse(text).make({})
    return [part.numpy() for part in codec.restore(0, x, x, torch.arange(x.shape[2]))]


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("group", [16, 64])
def test_integers_of_each_token(bits, group, scale):
    x = vectors(7, scale=scale)
    expected = by_channels(x.numpy(), group, bits)
    for found in restored(f"int:bits={bits},group={group}", x):
        assert np.array_equal(found, expected)


def test_without_a_group_a_head_is_one():
    x = vectors(7, channels=40)
    assert np.array_equal(restored("int:bits=4,group=null", x)[0], by_channels(x.numpy(), 40, 4))


@pytest.mark.parametrize("tokens", [1, 31, 32, 45, 64])
@pytest.mark.parametrize("bits", [2, 4])
def test_keys_of_kivi_go_by_channels_and_values_by_tokens(bits, tokens):
    x = vectors(tokens)
    keys, values = restored(f"kivi:bits={bits}", x)
    assert np.array_equal(keys, by_tokens(x.numpy(), 32, bits))
    assert np.array_equal(values, by_channels(x.numpy(), 32, bits))


@pytest.mark.parametrize("offset", [1000.3, -1000.3, 3001.0, -3001.0])
def test_a_zero_that_float16_rounds_far_leaves_integers_in_their_bits(offset):
    """float16 is 1 or 2 apart there, and a level 1/8."""
    x = (vectors(33) / 4 + offset).float()
    for text in ("int:bits=4,group=32", "kivi:bits=4"):
        keys, values = restored(text, x)
        expected = by_channels(x.numpy(), 32, 4)
        assert np.array_equal(keys, expected if text.startswith("int") else by_tokens(x.numpy(), 32, 4))
        assert np.array_equal(values, expected)


@pytest.mark.parametrize("text", ["int:bits=4", "int:bits=2", "kivi:bits=2", "kivi:bits=4"])
def test_what_is_restored_is_coded_again_without_loss(text):
    """Why requantizing a whole cache, as transformers does, adds next to nothing."""
    x = vectors(100)
    codec = CodecSpec.parse(text).make({})
    once = codec.restore(0, x, x, torch.arange(100))
    again = codec.restore(0, *once, torch.arange(100))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
