"""What holds for every peer: what is decoded is decoded from bytes, and these are as many as were published."""

import functools

import pytest
import torch
from peer_samples import learnt, made_samples, through, vectors_of

from pqkv.codec.planes import pack_planes, unpack_planes

SPECS = (
    "turboquant", "turboquant:bits=3,renormalise=true", "turboquant:bits=2,values=keys",
    "kvquant:bits=3", "kvquant:bits=2,outliers=0.01", "kvquant:bits=2,fisher=false",
    "cq:bits=4", "cq:bits=2", "cq:bits=1", "cq:channels=2,nbits=5", "cq:bits=2,fisher=false",
    "oscar", "oscar:channels=8,clip=1", "kvarn", "kvarn:bits=2,group=32", "kvarn:group=32/kvarn:bits=2,group=32",
    "aqua", "aqua:bits=3,first_bits=3", "nsn", "nsn:bits=1,group=32", "million", "million:num_subspaces=4,nbits=6",
)  # fmt: skip


@pytest.fixture(scope="module")
def samples():
    return made_samples()


@pytest.fixture(scope="module")
def codecs(samples):
    return functools.cache(lambda text: learnt(text, samples))


def sizes(codec, pairs, positions):
    """Bytes of every plane of every layer, by name; what the bytes decode to is what `restore` gives."""
    found, below = [], None
    for layer, (keys, values) in enumerate(pairs):
        packed = pack_planes(codec.encode(layer, keys, values, positions, below))
        decoded = codec.decode(layer, unpack_planes(packed), positions, below)
        for got, restored in zip(decoded, codec.restore(layer, keys, values, positions, below), strict=True):
            assert torch.equal(got, restored)
            assert got.shape == keys.shape
            assert got.dtype == torch.float32
        found.append({name: len(plane.data) for name, plane in packed.items()})
        below = decoded
    return found


@pytest.mark.parametrize("tokens", [1, 31, 32, 100, 128])
@pytest.mark.parametrize("text", SPECS)
def test_bytes_alone_decode_to_what_was_restored(codecs, samples, text, tokens):
    pairs, positions = vectors_of(samples, tokens, 200)
    sizes(codecs(text), pairs, positions)


@pytest.mark.parametrize("text", SPECS)
def test_sequences_of_a_batch_do_not_see_each_other(codecs, samples, text):
    pairs, positions = vectors_of(samples, 40)
    others, _ = vectors_of(samples, 40, 300)
    both = [tuple(torch.cat(sides) for sides in zip(a, b, strict=True)) for a, b in zip(pairs, others, strict=True)]
    together = through(codecs(text), both, positions)
    for row, alone in enumerate((pairs, others)):
        for got, own in zip(together, through(codecs(text), alone, positions), strict=True):
            for a, b in zip(got, own, strict=True):
                torch.testing.assert_close(a[row : row + 1], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("text", SPECS)
def test_groups_of_tokens_do_not_see_each_other(codecs, samples, text):
    """Else a cache that codes a page when it is full would hold something else."""
    codec = codecs(text)
    pairs, positions = vectors_of(samples, 3 * codec.group + 7)
    whole = through(codec, pairs, positions)
    for first in range(0, len(positions), codec.group):
        window = slice(first, first + codec.group)
        part = through(codec, [tuple(x[:, :, window] for x in pair) for pair in pairs], positions[window])
        for got, own in zip(whole, part, strict=True):
            for a, b in zip(got, own, strict=True):
                torch.testing.assert_close(a[:, :, window], b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1.5, -300.0])
@pytest.mark.parametrize("text", SPECS)
def test_vectors_without_any_spread_make_no_nan(codecs, text, value, dtype):
    flat = torch.full((2, 2, 33, 16), value, dtype=dtype)
    for keys, values in through(codecs(text), [(flat, flat)] * 2, torch.arange(33)):
        assert keys.isfinite().all()
        assert values.isfinite().all()


@pytest.mark.parametrize("text", SPECS)
def test_double_precision_is_coded_as_single_is(codecs, samples, text):
    pairs, positions = vectors_of(samples, 64)
    exact = through(codecs(text), [(k.double(), v.double()) for k, v in pairs], positions)
    for got, own in zip(exact, through(codecs(text), pairs, positions), strict=True):
        for a, b in zip(got, own, strict=True):
            assert (a - b).abs().gt(1e-3 * b.abs().amax()).float().mean() < 0.01  # a tie of rounding here and there


# bits an element of keys and of values, for heads of 128, in the first layer and in the second
PUBLISHED = {
    "turboquant": (4 + 16 / 128, 4 + 32 / 128),
    "turboquant:bits=3,values=keys": (3 + 16 / 128, 3 + 16 / 128),
    "kvquant:bits=4": (4, 4 + 32 / 256),  # a token's zero and reach are of all its heads, here of two
    "kvquant:bits=2": (2, 2 + 32 / 256),
    "cq:bits=4": (4, 4),
    "cq:bits=2": (2, 2),
    "cq:bits=1": (1, 1),
    "oscar": (2.25, 2.25),
    "kvarn:bits=4/kvarn:bits=2": (4.375, 2.375),  # k4v2 of 128 tokens: 3.375
    "nsn": (2 + 32 / 128 + 16 / 64, 2 + 32 / 128 + 16 / 64),
    "nsn:bits=1": (1 + 32 / 128 + 16 / 64, 1 + 32 / 128 + 16 / 64),
    "million:bits=4": (4, 4),
    "million:num_subspaces=32,nbits=6": (1.5, 1.5),
    "aqua:bits=2": (2 + 16 / 256, 2 + 16 / 256),
    "aqua:bits=3": (3 + 16 / 256, 3 + 16 / 256),
}


@pytest.fixture(scope="module")
def wide():
    return made_samples(head_dim=128, count=300)


@pytest.mark.parametrize("text", PUBLISHED)
def test_bits_are_those_that_were_published(wide, text):
    pairs, positions = vectors_of(wide, 256)
    codec = learnt(text + (",iterations=1" if text[:2] in ("cq", "kv", "mi") and "kvarn" not in text else ""), wide)
    elements = pairs[1][0].numel()
    found = sizes(codec, pairs, positions)[1]
    for side, bits in zip(("keys", "values"), PUBLISHED[text], strict=True):
        assert 8 * sum(size for name, size in found.items() if name.startswith(side)) == bits * elements


def test_the_first_layer_of_aqua_has_bits_of_its_own(wide):
    pairs, positions = vectors_of(wide, 64)
    first = sizes(learnt("aqua:bits=2", wide), pairs, positions)[0]
    assert 8 * (first["keys.codes"] + first["keys.norms"]) == (4 + 16 / 256) * pairs[0][0].numel()


def test_one_percent_of_outliers_costs_a_third_of_a_bit():
    """KVQuant: 2.33 bits in place of 2, for the 4,096 channels of Llama-2-7B's values."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(1, 32, 64, 128, generator=generator)
    codec = learnt("exact/kvquant:bits=2,outliers=0.01,fisher=false", wide_samples(values))
    planes = codec.encode(0, values, values, torch.arange(64), None)
    size = sum(len(p.data) for name, p in pack_planes(planes).items() if name.startswith("values"))
    assert 8 * size / values.numel() == pytest.approx(2.33, abs=0.02)


def wide_samples(values):
    from pqkv.codec.samples import Samples

    return Samples(keys=(values[0],), values=(values[0],), queries=(values[0, :, 0],))
