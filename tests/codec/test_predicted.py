"""Coding what the layer underneath does not predict."""

from dataclasses import replace

import pytest
import torch

from pqkv.codec.catalog import CodecSpec
from pqkv.codec.planes import pack_planes, unpack_planes
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.errors import ConfigError

LAYERS, H, N, D = 3, 2, 600, 16
ROTARY = Rotary(torch.logspace(0, -3, D // 2, dtype=torch.float64))


@pytest.fixture(scope="module")
def samples():
    """Layers whose keys before rotary embedding, and values, follow from those underneath but for a tenth."""
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, 2000, (N,), generator=generator)
    keys, values = [torch.randn(N, H * D, generator=generator)], [torch.randn(N, H * D, generator=generator)]
    for _ in range(LAYERS - 1):
        mix = torch.randn(2, H * D, H * D, generator=generator) / (H * D) ** 0.5
        noise = 0.1 * torch.randn(2, N, H * D, generator=generator)
        keys.append(keys[-1] @ mix[0] + noise[0] + 2)
        values.append(keys[-1] @ mix[1] + noise[1])
    split = lambda rows: rows.unflatten(-1, (H, D)).transpose(0, 1)
    moments = tuple(torch.eye(D).expand(H, D, D) for _ in range(LAYERS))
    return Samples(
        keys=tuple(ROTARY.turn(split(k), positions) for k in keys), values=tuple(map(split, values)),
        queries=tuple(torch.ones(H, D) for _ in keys), positions=positions, rotary=(ROTARY,) * LAYERS,
        query_moments=moments, outputs=moments,
    )  # fmt: skip


def made(text, samples):
    spec = CodecSpec.parse(text)
    return spec.make(spec.learn(samples))


def through(codec, samples, rows=slice(None)):
    """Restored layers, each from bytes, the lower ones handed on."""
    below, found, positions = None, [], samples.positions[rows]
    for layer in range(LAYERS):
        keys, values = samples.keys[layer][None, :, rows], samples.values[layer][None, :, rows]
        packed = pack_planes(codec.encode(layer, keys, values, positions, below))
        restored = codec.decode(layer, unpack_planes(packed), positions, below)
        assert all(map(torch.equal, restored, codec.restore(layer, keys, values, positions, below)))
        found.append((restored, sum(len(p.data) for p in packed.values())))
        below = restored
    return found


@pytest.mark.parametrize(
    "options", ["bits=4", "bits=2,first_bits=4", "bits=3,universal=false,metric=none,transform=none"]
)
def test_bytes_hold_all_that_is_restored(samples, options):
    codec = made(f"predicted:{options}", samples)
    for rows in (slice(0, 1), slice(0, 37)):
        found = through(codec, samples, rows)
        assert all(part.isfinite().all() for restored, _ in found for part in restored)
    elements, gain = 2 * 37 * H * D, 37 * H
    if options == "bits=2,first_bits=4":
        assert [size for _, size in found] == [elements // 2 + gain, elements // 4 + gain, elements // 4 + gain]


def test_what_is_predicted_costs_nothing_to_code(samples):
    plain, predicted = made("composed:bits=4", samples), made("predicted:bits=4,universal=false", samples)
    for layer in (1, 2):
        exact = samples.keys[layer], samples.values[layer]
        errors = [
            [
                float((part[0] - x).square().mean())
                for part, x in zip(through(codec, samples)[layer][0], exact, strict=True)
            ]
            for codec in (plain, predicted)
        ]
        assert all(own < other / 4 for other, own in zip(*errors, strict=True))


def test_values_are_predicted_from_the_keys_underneath_too(samples):
    generator = torch.Generator().manual_seed(1)
    first = ROTARY.take_off(samples.keys[0], samples.positions).transpose(0, 1).flatten(1)
    mix = torch.randn(H * D, H * D, generator=generator) / (H * D) ** 0.5
    follow = (first @ mix).unflatten(1, (H, D)).transpose(0, 1)
    other = torch.randn(H, N, D, generator=generator)  # keys of layer 1 say nothing of its values
    own = replace(
        samples, keys=(samples.keys[0], other, other), values=(torch.randn(H, N, D, generator=generator), follow, other)
    )
    restored = through(made("predicted:bits=4,universal=false", own), own)[1][0][1]
    plain = through(made("composed:bits=4", own), own)[1][0][1]
    assert float((restored - follow).square().mean()) < float((plain - follow).square().mean()) / 4


def test_a_layer_alone_is_refused(samples):
    codec = made("predicted:bits=4", samples)
    x = samples.keys[1][None]
    with pytest.raises(ConfigError, match="predicted from the one underneath, which was not coded"):
        codec.restore(1, x, x, samples.positions)
    with pytest.raises(ConfigError, match="positions and the rotary embedding"):
        made("predicted", Samples(samples.keys, samples.values, samples.queries))
