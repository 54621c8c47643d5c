"""What all codecs of numbers one by one have in common: real bytes, published sizes, no dependence on company."""

import pytest
import torch

from pqkv.codec.catalog import CODECS, CodecSpec
from pqkv.codec.planes import pack_planes, unpack_planes
from pqkv.codec.samples import Samples
from pqkv.errors import ConfigError

BITS = {  # an element, heads of 128, keys and values together
    "int:bits=1": 1.5,
    "int:bits=2": 2.5,
    "int:bits=3": 3.5,
    "int:bits=4": 4.5,
    "int:bits=8": 8.5,
    "int:bits=4,group=32": 5.0,
    "int:bits=4,group=null": 4.25,
    "kivi:bits=1": 2.0,
    "kivi:bits=2": 3.0,
    "kivi:bits=4": 5.0,
    "kivi:bits=2,group=64": 2.5,
    "q8_0": 8.5,
    "q8_0:rotate=true": 8.5,
    "q4_0": 4.5,
    "q4_0:rotate=true": 4.5,
    "fp8": 8.0,
    "fp8:scale=one": 8.0,
    "mxfp4": 4.25,
    "nvfp4": 4.5,
    "nvfp4:scale=one": 4.5,
}
HEADS = 2


def vectors(tokens, channels=128, *, batch=2, seed=0, dtype=torch.float32):
    """Channels of unlike means and spreads, as keys have."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.randn(HEADS, 1, channels, generator=generator).exp()
    mean = 3 * torch.randn(HEADS, 1, channels, generator=generator)
    return (torch.randn(batch, HEADS, tokens, channels, generator=generator) * spread + mean).to(dtype)


def samples(channels=128, layers=1):
    given = [vectors(64, channels, batch=1, seed=7 + i)[0] for i in range(2 * layers)]
    return Samples(tuple(given[:layers]), tuple(given[layers:]), tuple(torch.ones(HEADS, channels) for _ in given[1:]))


def made(text, channels=128):
    spec = CodecSpec.parse(text)
    return spec.make(spec.learn(samples(channels)))


def restored(codec, keys, values):
    return codec.restore(0, keys, values, torch.arange(keys.shape[2]))


def test_every_codec_of_numbers_one_by_one_is_here():
    assert {text.split(":")[0] for text in BITS} == {"int", "kivi", "q8_0", "q4_0", "fp8", "mxfp4", "nvfp4"}
    assert all(CODECS[text.split(":")[0]].source for text in BITS)


@pytest.mark.parametrize("tokens", [1, 31, 32, 100, 128])
@pytest.mark.parametrize("text", BITS)
def test_what_the_bytes_hold_is_what_is_restored(text, tokens):
    codec, keys, values = made(text), vectors(tokens), vectors(tokens, seed=1)
    positions = torch.arange(tokens)
    packed = pack_planes(codec.encode(0, keys, values, positions, None))
    from_bytes = codec.decode(0, unpack_planes(packed), positions, None)
    for found, expected in zip(from_bytes, restored(codec, keys, values), strict=True):
        assert torch.equal(found, expected)
        assert found.shape == keys.shape
        assert found.dtype == torch.float32


@pytest.mark.parametrize("text", BITS)
def test_bytes_are_those_of_the_recipe(text):
    keys, values = vectors(128), vectors(128, seed=1)
    packed = pack_planes(made(text).encode(0, keys, values, torch.arange(128), None))
    assert 8 * sum(len(plane.data) for plane in packed.values()) / (keys.numel() + values.numel()) == BITS[text]


def test_a_short_last_group_of_kivi_pays_for_its_own_scales():
    codec, keys = made("kivi:bits=2").keys, vectors(100)
    packed = pack_planes(codec.encode(0, keys, torch.arange(100)))
    assert sum(len(plane.data) for plane in packed.values()) == keys.numel() * 2 // 8 + 4 * 2 * HEADS * 4 * 128


def test_only_learnt_scales_are_held_beside_the_tokens():
    held = {text: made(text).fixed_bytes() for text in BITS}
    assert {text: count for text, count in held.items() if count} == {"fp8": 8, "nvfp4": 8}


@pytest.mark.parametrize("text", BITS)
def test_the_batch_changes_nothing(text):
    codec, keys, values = made(text), vectors(40), vectors(40, seed=1)
    together = restored(codec, keys, values)
    alone = [restored(codec, keys[b : b + 1], values[b : b + 1]) for b in range(2)]
    for side in range(2):
        assert torch.equal(together[side], torch.cat([parts[side] for parts in alone]))


@pytest.mark.parametrize("text", BITS)
def test_groups_of_tokens_are_coded_by_themselves(text):
    codec, keys, values = made(text), vectors(100), vectors(100, seed=1)
    size = codec.group
    parts = [
        codec.restore(0, keys[:, :, i : i + size], values[:, :, i : i + size], torch.arange(i, min(i + size, 100)))
        for i in range(0, 100, size)
    ]
    for side, found in enumerate(restored(codec, keys, values)):
        assert torch.equal(found, torch.cat([part[side] for part in parts], 2))


def test_keys_of_kivi_alone_are_coded_in_groups_of_tokens():
    codec = made("kivi:bits=2")
    assert (codec.group, codec.keys.group, codec.values.group) == (32, 32, 1)
    assert made("kivi:bits=2,group=64").group == 64
    assert made("int:bits=2").group == made("q4_0").group == made("fp8").group == 1


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("text", BITS)
def test_zeros_stay_zeros(text, tokens):
    zeros = torch.zeros(1, HEADS, tokens, 128)
    for found in restored(made(text), zeros, zeros):
        assert not found.any()


@pytest.mark.parametrize("size", [3.0, -0.01, 1e-6, 2e4])
@pytest.mark.parametrize("text", BITS)
def test_constant_vectors_are_finite(text, size):
    constant = torch.full((1, HEADS, 33, 128), size)
    for found in restored(made(text), constant, constant):
        assert found.isfinite().all()
        if text.startswith(("int", "kivi")):
            assert torch.equal(found, constant.half().float())  # the zero alone


@pytest.mark.parametrize("text", BITS)
def test_numbers_too_large_or_too_small_for_half_precision_give_no_nan(text):
    generator = torch.Generator().manual_seed(3)
    for scale in (1e-44, 1e-30, 1e-9, 1e6, 1e30):
        wild = torch.randn(1, HEADS, 33, 128, generator=generator) * scale
        for found in restored(made(text), wild, wild):
            assert found.isfinite().all()


@pytest.mark.parametrize("text", BITS)
def test_double_precision_restores_what_single_does(text):
    keys, values = vectors(40), vectors(40, seed=1)
    for one, two in zip(
        restored(made(text), keys, values), restored(made(text), keys.double(), values.double()), strict=True
    ):
        assert (
            (one - two).abs() > 1e-5
        ).float().mean() < 1e-3  # numbers that lie between two codes may fall either way


@pytest.mark.parametrize("text", BITS)
def test_no_tokens_are_no_bytes(text):
    none = torch.empty(1, HEADS, 0, 128)
    codec = made(text)
    planes = codec.encode(0, none, none, torch.arange(0), None)
    assert not sum(len(plane.data) for plane in pack_planes(planes).values())
    assert codec.decode(0, planes, torch.arange(0), None)[0].shape == none.shape


@pytest.mark.parametrize("text", ["int:bits=2", "kivi:bits=2", "q8_0", "q4_0", "mxfp4", "nvfp4"])
def test_groups_that_do_not_divide_a_head_are_refused(text):
    with pytest.raises(ConfigError, match=r"groups of \d+ channels do not divide heads of 40: take"):
        restored(made(text, 40), vectors(3, 40), vectors(3, 40))


def test_whole_heads_of_any_size_are_coded():
    assert restored(made("int:bits=4,group=null", 40), vectors(3, 40), vectors(3, 40))[0].shape == (2, HEADS, 3, 40)


def test_heads_that_llama_cpp_does_not_rotate_are_refused():
    with pytest.raises(ConfigError, match="heads of 96 are not rotated, only multiples of 64: take rotate=false"):
        restored(made("q4_0:rotate=true", 96), vectors(3, 96), vectors(3, 96))


def test_codecs_of_one_side_stand_beside_any_other():
    codec = made("kivi:bits=2/fp8:scale=one")
    keys, values = vectors(40), vectors(40, seed=1)
    found = restored(codec, keys, values)
    assert torch.equal(found[0], restored(made("kivi:bits=2"), keys, values)[0])
    assert torch.equal(found[1], restored(made("fp8:scale=one"), keys, values)[1])
