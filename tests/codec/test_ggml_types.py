"""q8_0 and q4_0 are those of the `gguf` package to the bit, and mxfp4 and nvfp4 decode as it does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.codec.catalog import CodecSpec
from pqkv.codec.peers.ggml import walsh_hadamard
from pqkv.codec.planes import Plane
from pqkv.codec.transforms import hadamard

gguf = pytest.importorskip("gguf")
TYPES = {name: getattr(gguf.GGMLQuantizationType, name.upper()) for name in ("q8_0", "q4_0", "mxfp4", "nvfp4")}


def side(text, which="keys"):
    return getattr(CodecSpec.parse(text).make({}), which)


def vectors(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def theirs(name, x):
    """Restored by gguf, row by row."""
    rows = gguf.quants.quantize(x.float().numpy(), TYPES[name])
    return torch.from_numpy(gguf.quants.dequantize(rows, TYPES[name])).reshape(x.shape)


def restored(codec, x):
    return codec.restore(0, x, torch.arange(x.shape[2]))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 300.0])
@pytest.mark.parametrize("channels", [32, 64, 96, 128])
@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_blocks_are_those_of_gguf(name, channels, scale):
    x = vectors(2, 3, 40, channels, seed=channels, scale=scale)
    assert torch.equal(restored(side(name), x), theirs(name, x))


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(["q8_0", "q4_0"]),
    st.lists(st.integers(-9, 9), min_size=32, max_size=32),
    st.sampled_from([8, 127, 3]),
)
def test_halves_and_equal_magnitudes_fall_as_in_gguf(name, numbers, divisor):
    """Small integers: several elements of the largest magnitude and of both signs, and numbers between two codes."""
    x = (torch.tensor(numbers) / divisor).reshape(1, 1, 1, 32)
    assert torch.equal(restored(side(name), x), theirs(name, x))


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_double_precision_is_rounded_to_single_first(name):
    """Halves and sixteenths of the largest lie between two codes: in which precision they are computed decides."""
    x = torch.zeros(1, 1, 200, 32)
    x[..., :3] = torch.tensor([2.0, 1.0, 0.125]) / torch.arange(1, 201)[:, None]
    assert torch.equal(restored(side(name), x.double()), theirs(name, x))


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_their_bytes_hold_the_same_scales_and_codes(name):
    x = vectors(1, 1, 5, 64, seed=2)
    x[0, 0, 3, :32] = 0
    rows = gguf.quants.quantize(x.numpy(), TYPES[name]).reshape(5, 2, -1)  # (T, blocks, bytes)
    planes = side(name).encode(0, x, torch.arange(5))
    assert np.array_equal(planes["scales"].values.numpy().reshape(5, 2), rows[..., :2].copy().view(np.float16)[..., 0])
    codes = planes["codes"].values.numpy().reshape(5, 2, 32)
    if name == "q4_0":  # bytes hold elements i and i + 16
        codes = codes[..., :16] | codes[..., 16:] << 4
    assert np.array_equal(codes.view(np.uint8), rows[..., 2:])


@pytest.mark.parametrize(("which", "channels", "block"), [
    ("keys", 64, 64), ("keys", 128, 128), ("keys", 192, 64), ("keys", 256, 256),
    ("values", 64, 64), ("values", 128, 64), ("values", 192, 64), ("values", 256, 64),
])  # fmt: skip
@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_rotated_vectors_are_coded_and_turned_back(name, which, channels, block):
    """Keys turn in the largest block that divides a head, values in 64: by gguf, between matrices made bit by bit."""
    x = vectors(1, 2, 16, channels, seed=5)
    signs = [[(-1) ** (i & j).bit_count() for j in range(block)] for i in range(block)]
    matrix = np.kron(np.eye(channels // block), np.array(signs) / block**0.5)
    turned = torch.from_numpy((x.double().numpy() @ matrix).astype(np.float32))
    expected = theirs(name, turned).double().numpy() @ matrix
    found = restored(side(f"{name}:rotate=true", which), x).double().numpy()
    assert np.abs(found - expected).max() < 2e-6


@pytest.mark.parametrize("size", [1, 2, 64, 256])
def test_sums_and_differences_are_the_hadamard_matrix(size):
    x = vectors(3, size).double()
    assert (walsh_hadamard(x) - x @ hadamard(size)).abs().max() < 1e-12


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e5])
def test_mxfp4_is_that_of_gguf_where_nothing_lies_halfway(scale):
    """Halfway gguf takes the first of two floats, the format's own conversion the even one."""
    x = vectors(2, 3, 40, 64, seed=11, scale=scale)
    assert torch.equal(restored(side("mxfp4"), x), theirs("mxfp4", x))


def test_mxfp4_scales_decode_as_those_of_torch_and_gguf():
    exponents = torch.arange(255, dtype=torch.uint8)
    planes = {
        "codes": Plane(torch.full((1, 1, 255, 1, 32), 2, dtype=torch.uint8), 4),  # 1 of e2m1
        "exponents": Plane(exponents.reshape(1, 1, 255, 1, 1)),
    }
    found = side("mxfp4").decode(0, planes, torch.arange(255))[0, 0, :, 0]
    rows = np.concatenate([exponents.numpy()[:, None], np.full((255, 16), 0x22, np.uint8)], -1)
    assert np.array_equal(found.numpy(), gguf.quants.dequantize(rows, TYPES["mxfp4"])[:, 0])
    if hasattr(torch, "float8_e8m0fnu"):
        assert torch.equal(found, exponents.view(torch.float8_e8m0fnu).float())


def test_nvfp4_decodes_as_in_gguf():
    """gguf reads NVFP4 and writes none: rows of our planes, 64 channels each, four scales before the codes."""
    x = vectors(1, 2, 20, 64, seed=12, scale=4)
    codec = side("nvfp4:scale=one")
    planes = codec.encode(0, x, torch.arange(20))
    scales = planes["scales"].values.view(torch.uint8).reshape(40, 4).numpy()
    codes = planes["codes"].values.reshape(40, 4, 16).numpy()
    rows = np.concatenate([scales, (codes[..., :8] | codes[..., 8:] << 4).reshape(40, 32)], -1)
    expected = torch.from_numpy(gguf.quants.dequantize(rows, TYPES["nvfp4"])).reshape(x.shape)
    assert torch.equal(codec.decode(0, planes, torch.arange(20)), expected)
