"""Recipes that are served, learnt from samples small enough for a test."""

import torch

from pqkv.codec.composed import Composed, ComposedOptions
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.codec.served import served_books

LAYERS, H, N, D = 2, 2, 600, 16
ROTARY = Rotary(torch.logspace(0, -3, 6, dtype=torch.float64))  # of 16 channels 12 turn
SHAPE = {"num_subspaces": 8, "nbits": 4, "iterations": 2}
KEYS = {"mean": "turning", "metric": "full", "transform": "klt", "centroids": "int8"}
VALUES = {"gain": True, "transform": "hadamard", "scope": "universal"}


def make_samples():
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(0, 4000, (N,), generator=generator)
    spread = torch.logspace(0, -1.5, D)
    keys = [torch.randn(H, N, D, generator=generator) * spread + 3 * spread for _ in range(LAYERS)]
    values = [torch.randn(H, N, D, generator=generator) for _ in range(LAYERS)]
    mixing = torch.randn(LAYERS, H, D, D, generator=generator) / D**0.5
    moments = tuple(m @ m.mT + 0.1 * torch.eye(D) for m in mixing)
    return Samples(
        keys=tuple(ROTARY.turn(k, positions) for k in keys), values=tuple(values), queries=(),
        positions=positions, rotary=(ROTARY,) * LAYERS, query_moments=moments, outputs=moments,
    )  # fmt: skip


def learnt(samples, keys=None, values=None, *, half=True):
    """Both codecs, and the codebooks that serve them."""
    options = {
        side: ComposedOptions.parse({**SHAPE, **(default if given is None else given)})
        for side, given, default in (("keys", keys, KEYS), ("values", values, VALUES))
    }
    codecs = {side: Composed.learnt(own, side, samples) for side, own in options.items()}
    books = served_books(
        options["keys"], codecs["keys"].state, options["values"], codecs["values"].state, LAYERS, half=half
    )
    return codecs, books, options
