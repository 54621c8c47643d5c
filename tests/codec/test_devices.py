"""Codecs work where their vectors are. The meta device stands for a GPU: it holds no numbers, and like one it
refuses to mix its tensors with the CPU's.
"""

import pytest
import torch
from peer_samples import learnt, made_samples, vectors_of

from pqkv.codec.catalog import CODECS
from pqkv.codec.planes import Plane, pack_planes, unpack_planes
from pqkv.quality.control import shuffled

META = torch.device("meta")
SPECS = [
    *(f"composed:bits=4,mean=turning,metric=full,transform=klt/composed:bits=4,{rest}" for rest in (
        "mean=constant,gain=true,transform=hadamard,scope=universal", "transform=opq",
    )),
    "composed:bits=4,mean=turning,turning_pairs=8,metric=full,transform=klt,centroids=int8/composed:layer_bits=2+6",
    "predicted:bits=4,transform=opq", "int:bits=4,group=64", "kivi:bits=4", "q8_0", "q4_0", "q4_0:rotate=true", "fp8",
    "mxfp4", "nvfp4", "turboquant:bits=4", "kvquant:bits=4", "cq:channels=2,nbits=8", "oscar:bits=2",
    "kvarn:bits=4/kvarn:bits=2", "aqua:bits=3", "nsn:bits=2", "million:bits=4", "exact",
]  # fmt: skip


@pytest.fixture(scope="module")
def samples():
    return made_samples(head_dim=64)


def test_every_codec_is_here():
    """KVQuant's outliers are the one thing that is not: how many they are is known from numbers only."""
    assert {part.split(":")[0] for spec in SPECS for part in spec.split("/")} == set(CODECS)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("control", [False, True])
def test_nothing_is_left_on_the_cpu(spec, control, samples):
    codec = learnt(spec, samples)
    codec = (shuffled(codec) if control else codec).to(META)
    pairs, positions = vectors_of(samples, 200)
    below = None
    for layer, pair in enumerate(pairs):
        keys, values, at = pair[0].to(META), pair[1].to(META), positions.to(META)
        planes = codec.encode(layer, keys, values, at, below)
        assert {plane.values.device for plane in planes.values()} == {META}
        below = codec.restore(layer, keys, values, at, below)
        assert [(found.device, found.shape) for found in below] == [(META, keys.shape), (META, values.shape)]


def test_packed_planes_come_back_where_they_are_wanted():
    planes = pack_planes({"codes": Plane(torch.arange(8), 4), "scales": Plane(torch.ones(3))})
    assert {plane.values.device for plane in unpack_planes(planes, META).values()} == {META}
    assert {plane.values.device.type for plane in unpack_planes(planes).values()} == {"cpu"}
