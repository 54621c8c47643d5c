"""Made-up samples that every recipe can learn from: heavy tails, layers alike, a channel far out."""

import torch

from pqkv.codec.catalog import CodecSpec
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples


def made_samples(layers=2, heads=2, count=600, head_dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    rotary = Rotary(10_000.0 ** -(torch.arange(head_dim // 2).double() / (head_dim // 2)))
    positions = torch.randint(0, 3000, (count,), generator=generator).sort().values
    keys, values, moments = [], [], []
    for layer in range(layers):
        mix = normal(heads, head_dim, head_dim) / head_dim**0.5
        still = normal(heads, count, head_dim) * (0.2 + normal(heads, count, 1).abs()) @ mix
        if layer:
            still = still + 0.9 * rotary.take_off(keys[-1], positions)
        still[..., 1] += 7
        keys.append(rotary.turn(still, positions))
        values.append(normal(heads, count, head_dim) * 0.3 + (0.8 * values[-1] if layer else 0) + 0.2 * still)
        root = normal(heads, head_dim, head_dim)
        moments.append(root @ root.mT)
    return Samples(
        keys=tuple(keys),
        values=tuple(values),
        queries=tuple(m.diagonal(dim1=-2, dim2=-1).sqrt() for m in moments),
        positions=positions,
        rotary=(rotary,) * layers,
        query_moments=tuple(moments),
        key_gradients=tuple(normal(heads, count, head_dim) ** 3 for _ in range(layers)),
        value_gradients=tuple(normal(heads, count, head_dim) ** 3 for _ in range(layers)),
    )


def learnt(text, samples, seed=0):
    """The codec that a specification names, learnt from samples."""
    spec = CodecSpec.parse(text)
    return spec.make(spec.learn(samples, seed))


def vectors_of(samples, tokens, first=0):
    """Keys and values (1, Hkv, T, D) of every layer, and the positions (T,), of neighbouring samples."""
    window = slice(first, first + tokens)
    pairs = [(k[None, :, window], v[None, :, window]) for k, v in zip(samples.keys, samples.values, strict=True)]
    return pairs, samples.positions[window]


def through(codec, pairs, positions):
    """Every layer restored, from the first up."""
    found, below = [], None
    for layer, (keys, values) in enumerate(pairs):
        below = codec.restore(layer, keys, values, positions, below)
        found.append(below)
    return found
