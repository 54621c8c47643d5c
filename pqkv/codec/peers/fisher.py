"""Samples as recipes want them that code keys before rotary embedding and weigh by Fisher information."""

from __future__ import annotations

from torch import Tensor

from pqkv.codec.interface import Side
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.errors import ConfigError


def still_rotary(samples: Samples, side: Side, layer: int) -> Rotary | None:
    """What to take off the keys of a layer; None for values. Raises `ConfigError` where samples do not say."""
    if side == "values":
        return None
    if samples.rotary is None or samples.positions is None:
        raise ConfigError("keys before rotary embedding want the positions and the rotary embedding of the samples")
    return samples.rotary[layer]


def still(samples: Samples, side: Side, layer: int) -> Tensor:
    """Vectors (Hkv, N, D) of a side, keys before rotary embedding."""
    rotary, vectors = still_rotary(samples, side, layer), samples.of(side)[layer]
    return vectors if rotary is None or samples.positions is None else rotary.take_off(vectors, samples.positions)


def fisher(samples: Samples, side: Side, layer: int) -> Tensor:
    """Squared gradients (Hkv, N, D) by what `still` gives: the diagonal of the empirical Fisher information. A gradient
    is turned back as its vector is (a rotation is its own inverse transposed), and squared only then.
    """
    gradients = samples.key_gradients if side == "keys" else samples.value_gradients
    if gradients is None:
        raise ConfigError("weights by Fisher information are made of gradients: samples hold none")
    rotary, found = still_rotary(samples, side, layer), gradients[layer].float()
    if rotary is not None and samples.positions is not None:
        found = rotary.take_off(found, samples.positions)
    return found.square()
