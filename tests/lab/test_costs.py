"""What parts cost, held to the bytes that codecs keep."""

import pytest
import torch

from pqkv.codec.composed import Composed, ComposedOptions
from pqkv.codec.planes import pack_planes
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.errors import ConfigError
from pqkv.lab.costs import costs

D, N = 16, 400
RECIPES = [
    {"bits": 4, "nbits": None}, {"bits": 3, "gain": True},
    {"bits": 4, "mean": "turning", "transform": "klt", "metric": "full"},
    {"bits": 4, "mean": "turning", "turning_pairs": 3, "centroids": "int8"},
    {"bits": 4, "gain": True, "transform": "hadamard", "scope": "universal", "mean": "constant"},
]  # fmt: skip


def made(options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, N, D, generator=generator)
    samples = Samples((x,), (x,), (torch.ones(1, D),), torch.arange(N), (Rotary(torch.ones(D // 2).double()),),
                      (torch.eye(D)[None],), (torch.eye(D)[None],))  # fmt: skip
    return Composed.learnt(options, "keys", samples), x


@pytest.mark.parametrize("given", RECIPES, ids=str)
def test_bytes_a_token_are_those_of_the_planes(given):
    options = ComposedOptions.parse({"iterations": 1, **given})
    codec, x = made(options)
    packed = pack_planes(codec.encode(0, x[None], torch.arange(N)))
    assert sum(c.bytes_per_token for c in costs(options, "keys", D)) * N == sum(len(p.data) for p in packed.values())


def test_centroids_that_are_kept_are_counted():
    for given in RECIPES:
        options = ComposedOptions.parse({"iterations": 1, **given})
        codec, _ = made(options)
        kept = [t for name, t in codec.state.items() if name in ("0.centroids", "0.scales")]
        assert costs(options, "keys", D)[0].fixed_bytes == sum(t.numel() * t.element_size() for t in kept)


def test_what_a_part_takes_grows_with_what_it_does():
    given = {"all": {}, "8": {"turning_pairs": 8}, "16th": {"turning_every": 16}}
    turning = {
        n: costs(ComposedOptions.parse({"bits": 4, "mean": "turning", **options}), "keys", 64)
        for n, options in given.items()
    }
    per_token = {n: sum(c.per_token for c in found if c.part == "mean that turns") for n, found in turning.items()}
    assert per_token == {"all": 32, "8": 8, "16th": 2}
    plain, coded = (
        sum(c.per_token for c in costs(ComposedOptions.parse(o), "values", 64))
        for o in ({"bits": 4}, {"bits": 4, "gain": True})
    )
    assert (plain, coded) == (32, 33)
    steps = {
        t: costs(ComposedOptions.parse({"bits": 4, "transform": t}), "values", 64)[-1] for t in ("hadamard", "klt")
    }
    assert (steps["hadamard"].per_step, steps["klt"].per_step) == (64 * 6, 64 * 64)
    assert (steps["hadamard"].fixed_bytes, steps["klt"].fixed_bytes) == (0, 4 * 64 * 64)


def test_what_nobody_would_serve_has_no_costs():
    with pytest.raises(ConfigError, match="turned first"):
        costs(ComposedOptions.parse({"bits": 4, "rope": "pre"}), "keys", 64)
    with pytest.raises(ConfigError, match="layer 0 is exact"):
        costs(ComposedOptions.parse({"layer_bits": (0, 4)}), "keys", 64)
