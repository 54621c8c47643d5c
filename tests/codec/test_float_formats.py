"""fp8, mxfp4 and nvfp4 by their definitions: floats made of their bits, the nearest of all, ties to the even one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pqkv.codec.catalog import CodecSpec
from pqkv.codec.peers.e2m1 import e2m1_codes, e2m1_floats
from pqkv.codec.samples import Samples


def floats(exponent_bits, mantissa_bits, bias, count):
    """The `count` least floats of a format that are not negative, by the place of their bits."""
    found = []
    for code in range(count):
        exponent, mantissa = divmod(code, 2**mantissa_bits)
        assert exponent < 2**exponent_bits
        fraction = mantissa / 2**mantissa_bits
        found.append(2.0 ** (1 - bias) * fraction if exponent == 0 else 2.0 ** (exponent - bias) * (1 + fraction))
    return found


E2M1 = floats(2, 1, 1, 8)
E4M3 = floats(4, 3, 7, 127)  # the last code is NaN


def nearest(value, table):
    """The nearest of all floats and their negatives, of two the one of an even code; past the largest the largest."""
    gaps = [abs(abs(value) - level) for level in table]
    best = min(range(len(table)), key=lambda code: (gaps[code], code % 2))
    return math.copysign(table[best], value)


def side(text, state=()):
    return CodecSpec.parse(text).make({f"keys.{k}": v for k, v in dict(state).items()}).keys


def restored(codec, x):
    return codec.restore(0, x, torch.arange(x.shape[2]))


def vectors(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def samples_of(x):
    flat = x.transpose(0, 1).flatten(1, 2)  # (B, Hkv, T, D) -> (Hkv, B T, D)
    return Samples((flat,), (2 * flat,), (torch.ones(flat.shape[0], flat.shape[2]),))


def test_the_largest_floats_are_those_of_the_formats():
    assert (E2M1[-1], E4M3[-1]) == (6, 448)
    assert torch.equal(torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float(), torch.tensor(E4M3))


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.integers(-64, 64).map(lambda n: n / 8), st.floats(-9, 9, width=32)))
def test_e2m1_is_the_nearest_float(value):
    found = e2m1_floats(e2m1_codes(torch.tensor([value])))
    assert found.tolist() == [nearest(value, E2M1)]


def test_e2m1_codes_are_the_bits_of_the_float():
    assert e2m1_codes(torch.tensor([*E2M1, *(-level for level in E2M1)])).tolist() == list(range(16))


# fp8


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.sampled_from(E4M3), st.floats(-500, 500, width=32), st.integers(-32, 32).map(lambda n: n / 2**11)))
def test_fp8_is_the_nearest_float_and_saturates(value):
    assert restored(side("fp8:scale=one"), torch.full((1, 1, 1, 1), value)).item() == nearest(value, E4M3)


def test_fp8_is_torchs_own():
    x = vectors(2, 2, 30, 64, scale=20)
    assert torch.equal(restored(side("fp8:scale=one"), x), x.to(torch.float8_e4m3fn).float())


def test_the_largest_of_the_samples_is_the_largest_float():
    x = vectors(1, 2, 30, 16, scale=0.01)
    codec = CodecSpec.parse("fp8")
    made = codec.make(codec.learn(samples_of(x)))
    found = restored(made.keys, x)
    place = x.abs().argmax()
    assert found.flatten()[place] == pytest.approx(x.flatten()[place].item(), rel=1e-6)
    assert made.keys.encode(0, x, torch.arange(30))["floats"].values.float().abs().max() == 448
    assert made.values.of_layer(0, "scale") == 2 * made.keys.of_layer(0, "scale")  # a side has its own
    assert made.values.of_layer(0, "scale") == 2 * made.keys.of_layer(0, "scale")  # each side has its own


def test_what_the_samples_did_not_reach_saturates():
    x = vectors(1, 2, 30, 16)
    codec = side("fp8", {"0.scale": x.abs().max() / 448})
    assert restored(codec, 3 * x).abs().max() == x.abs().max()


def test_a_layer_that_is_zero_throughout_the_samples_is_coded():
    x = vectors(1, 2, 5, 16)
    x[0, 0] = 0
    for text in ("fp8", "nvfp4"):
        spec = CodecSpec.parse(text)
        codec = spec.make(spec.learn(samples_of(torch.zeros(1, 2, 5, 16)))).keys
        assert restored(codec, x).isfinite().all()


# MXFP4


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(-255, 255), min_size=32, max_size=32),
    st.one_of(st.integers(-10, 10), st.integers(-140, 110)),
)
@example([1] * 32, -130)  # under the least scale
@example([0] * 32, 0)
@example([255, 14, 10, 7, 5, 3, 1] + [0] * 25, 110)
def test_mxfp4_is_its_conversion_number_by_number(numbers, octave):
    """Small integers times a power of two: many lie halfway between two floats, or past 6 scales."""
    x = torch.tensor(numbers, dtype=torch.float64) * 2.0**octave
    x = x.float()
    largest = x.abs().max().item()
    exponent = 0 if largest == 0 else max(-127, math.frexp(largest)[1] - 3)  # octave of the largest less that of 4
    scale = 2.0**exponent
    expected = [scale * nearest(value / scale, E2M1) for value in x.tolist()]
    assert restored(side("mxfp4"), x.reshape(1, 1, 1, 32)).flatten().tolist() == expected


def test_mxfp4_blocks_are_neighbouring_channels():
    x = vectors(1, 1, 1, 64)
    x[..., 32:] *= 2.0**20
    found = restored(side("mxfp4"), x)
    assert torch.equal(found[..., :32], restored(side("mxfp4"), x[..., :32].contiguous()))
    assert found[..., :32].any()


# NVFP4


@pytest.mark.parametrize("scale", ["learnt", "one"])
@pytest.mark.parametrize("size", [1e-3, 1.0, 30.0, 4000.0])
def test_nvfp4_is_its_conversion_number_by_number(scale, size):
    """In numpy's float32, by lists of all floats; 4,000 is past 448 * 6 where the one scale is 1."""
    x = vectors(1, 2, 6, 32, scale=size)
    x[0, 0, 0] = 0
    x[0, 0, 1] *= 1e-6  # a block under the least scale
    whole = np.float32(1)
    state = {}
    if scale == "learnt":
        state = {"0.scale": x.abs().max() / (6 * 448)}
        whole = np.float32(x.abs().max().numpy() / np.float32(6 * 448))
    expected = np.zeros(x.shape, np.float32)
    for place in np.ndindex(1, 2, 6, 2):
        channels = slice(16 * place[-1], 16 * place[-1] + 16)
        block = x[place[:-1]][channels].numpy() / whole
        step = np.float32(nearest(np.abs(block).max() / np.float32(6), E4M3))
        levels = [nearest(value / step if step else value, E2M1) for value in block]
        expected[place[:-1]][channels] = np.float32(levels) * step * whole
    assert np.array_equal(restored(side(f"nvfp4:scale={scale}", state), x).numpy(), expected)


def test_the_largest_of_the_samples_has_the_largest_scale_and_float():
    x = vectors(1, 2, 30, 16, scale=0.01)
    spec = CodecSpec.parse("nvfp4")
    codec = spec.make(spec.learn(samples_of(x))).keys
    planes = codec.encode(0, x, torch.arange(30))
    place = x.abs().argmax()
    assert planes["scales"].values.float().max() == 448
    assert planes["codes"].values.flatten()[place] % 8 == 7
    assert restored(codec, x).flatten()[place] == pytest.approx(x.flatten()[place].item(), rel=1e-6)
