"""Every path of the byte look-ups gives, to the bit, what plain LLVM and NumPy give.

A path whose instructions this processor lacks runs with them written out in plain LLVM (`compiling.Compiled`).
"""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.byte_lookups import twin
from kernels.byte_lookups.compiling import Compiled, largest, portable_like, weigh
from llvmlite.binding import get_host_cpu_features

from pqkv.cpu_path import NEEDS
from pqkv.kernels.cpu.byte_lookups.assembly import key_module, value_module
from pqkv.kernels.cpu.byte_lookups.avx2 import Avx2
from pqkv.kernels.cpu.byte_lookups.avx512 import Avx512
from pqkv.kernels.cpu.byte_lookups.one_plane import Avx2OnePlane, Avx512OnePlane, ByteWeights, VnniOnePlane
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.kernels.cpu.byte_lookups.vnni import Vnni

PATHS = {
    "avx2": Avx2, "vnni": Vnni, "avx512": Avx512,
    "avx2 8bit": Avx2OnePlane, "vnni 8bit": VnniOnePlane, "avx512 8bit": Avx512OnePlane,
}  # fmt: skip
# codes of every width, subspaces of every width, groups of 1 to 8
SHAPES = [
    ("avx2", Shape(6, 2, 4), 16),
    ("avx2", Shape(4, 1, 3), 20),
    ("avx2", Shape(4, 4, 1), 24),
    ("avx2", Shape(6, 8, 2), 16),
    ("vnni", Shape(6, 2, 4), 16),
    ("vnni", Shape(4, 1, 3), 20),
    ("vnni", Shape(4, 4, 2), 24),
    ("avx512", Shape(8, 2, 4), 16),
    ("avx512", Shape(6, 4, 2), 24),
    ("avx512", Shape(4, 1, 8), 20),
    ("avx512", Shape(8, 8, 1), 16),
    ("avx2 8bit", Shape(6, 2, 4), 16),
    ("avx2 8bit", Shape(4, 1, 3), 20),
    ("avx2 8bit", Shape(4, 8, 1), 24),
    ("vnni 8bit", Shape(6, 2, 4), 16),
    ("vnni 8bit", Shape(4, 1, 3), 20),
    ("avx512 8bit", Shape(8, 2, 4), 16),
    ("avx512 8bit", Shape(6, 4, 3), 24),
    ("avx512 8bit", Shape(4, 1, 8), 20),
]
CASES = [pytest.param(*case, id=f"{case[0]}-{case[1].nbits}-{case[1].d_sub}-{case[1].heads}") for case in SHAPES]
FEW = settings(max_examples=8, deadline=None)


@functools.cache
def built(make, path, *arguments):
    """As the path compiles it, and plain LLVM in its place."""
    cls = PATHS[path]
    there = get_host_cpu_features()
    software = not any(all(there.get(feature) for feature in form) for form in NEEDS[path.split()[0]])
    return Compiled(make(cls, *arguments), software=software), Compiled(make(portable_like(cls), *arguments))


def packed_page(draw, M, blocks, nbits):
    """Bytes of a page (M, blocks * 64 codes), and the codes (blocks, M, 64)."""
    page = draw.integers(0, 256, (M, blocks * 8 * nbits), dtype=np.uint8)
    codes = np.stack([twin.codes_of(page[:, b * 8 * nbits : (b + 1) * 8 * nbits], nbits) for b in range(blocks)])
    return page, codes


@pytest.mark.parametrize(("path", "shape", "head_dim"), CASES)
@FEW
@given(seed=st.integers(0, 2**32 - 1), extreme=st.booleans())
def test_scores_of_a_block(path, shape, head_dim, seed, extreme):
    draw = np.random.default_rng(seed)
    M, C, G = head_dim // shape.d_sub, shape.entries, shape.heads
    page, codes = packed_page(draw, M, 2, shape.nbits)
    table = draw.integers(0, 256, (head_dim, C), dtype=np.uint8)
    most, kind = PATHS[path].largest_query, f"i{PATHS[path].query_bytes}"
    query = draw.integers(-most, most + 1, (G, head_dim)).astype(kind)
    if extreme:
        table[:], query[:] = draw.choice([0, 255]), draw.choice([-most, most], (G, 1))
    offsets = (128 * query.astype(np.int64).sum(1)).astype(np.int32)
    scales = draw.standard_normal(G).astype(np.float32)
    expected = twin.scores(codes[1], table, query, offsets, scales, shape.d_sub)
    for run in built(key_module, path, shape):
        found = np.full((G, 64), np.nan, np.float32)
        start = page.reshape(-1)[8 * shape.nbits :]
        run(start, page.shape[1], head_dim, table, query, offsets, scales, found, *[page.ctypes.data] * 2)
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(("path", "shape", "head_dim"), CASES)
@FEW
@given(seed=st.integers(0, 2**32 - 1), extreme=st.booleans())
def test_values_of_a_span(path, shape, head_dim, seed, extreme):
    draw = np.random.default_rng(seed)
    cls = PATHS[path]
    M, C, G, groups = head_dim // shape.d_sub, shape.entries, shape.heads, 2
    blocks = groups * cls.scaled
    page, codes = packed_page(draw, M, blocks, shape.nbits)
    table = draw.integers(-128, 128, (head_dim, C)).astype(np.int8)
    integers = draw.integers(0, cls.largest_weight + 1, (blocks, G, 64))
    if extreme:
        table[:], integers[:] = draw.choice([-128, 127]), cls.largest_weight
    order = draw.permutation(blocks)
    places = (order * 8 * shape.nbits).astype(np.int64)
    scales = draw.random((groups, G)).astype(np.float32)
    before = draw.standard_normal((head_dim, G, cls.lanes)).astype(np.float32)
    by_group = codes[order].reshape(groups, cls.scaled, M, 64), integers.reshape(groups, cls.scaled, G, 64)
    expected = twin.mixed(before, by_group[0], table, by_group[1], scales, shape.d_sub, cls.lanes)
    for own, run in zip((cls, portable_like(cls)), built(value_module, path, shape), strict=True):
        sums = before.copy()
        given = laid_out(own, integers), scales, sums, page.ctypes.data + places
        run(page, places, groups, page.shape[1], head_dim, table, *given)
        assert np.array_equal(sums, expected)


@pytest.mark.parametrize("path", ["avx512", "avx512 8bit", "avx2"])
@pytest.mark.parametrize("shape", [Shape(6, 2, 4), Shape(4, 1, 5), Shape(4, 8, 2)], ids=str)
def test_each_subspace_of_what_comes_next_is_asked_for_once(path, shape):
    M, line = 16 // shape.d_sub, 1_000_003
    page, room = np.zeros((M, 8 * shape.nbits), np.uint8), np.zeros(4096, np.uint8)
    asked = Compiled(key_module(PATHS[path], shape), software=True, recorded=True)
    asked(page, page.shape[1], 16, np.zeros(4096, np.uint8), room, room, room, np.zeros(4096, np.float32), 7, 11)
    assert asked.prefetched() == {first + page.shape[1] * m: 1 for m in range(M) for first in (7, 11)}
    blocks = 2 * PATHS[path].scaled
    asked = Compiled(value_module(PATHS[path], shape), software=True, recorded=True)
    starts, weights = line * np.arange(1, blocks + 1), np.zeros(blocks * shape.heads * 128, np.uint8)
    sums = np.zeros(16 * shape.heads * 16, np.float32)
    asked(page, np.zeros(blocks, np.int64), 2, page.shape[1], 16, np.zeros(4096, np.uint8), weights, room, sums, starts)
    assert asked.prefetched() == {int(start) + page.shape[1] * m: 1 for m in range(M) for start in starts}


def laid_out(path, integers):
    """Weights as `keep_weights` writes them, from its docstring."""
    if issubclass(path, ByteWeights):
        return integers.astype(np.uint8)
    words = integers.astype(np.uint16)
    if path is Avx2:
        words = words.reshape(*words.shape[:-1], 2, 16, 2).swapaxes(-1, -2)
    if path in (Avx512, Vnni):
        return np.stack([(words >> 8).astype(np.uint8), words.astype(np.uint8)], -2).copy()
    return words.copy()


@pytest.mark.parametrize("gained", [False, True])
@pytest.mark.parametrize("path", PATHS)
@FEW
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.1, 3.0, 40.0, 3000.0]))
def test_weights(path, gained, seed, spread):
    draw, cls, G = np.random.default_rng(seed), PATHS[path], 3
    blocks = 2 * cls.scaled
    scores = (draw.standard_normal((blocks, G, 64)) * spread).astype(np.float32)
    scores[-1, 0] = -np.inf
    top = scores.max((0, 2))
    gains = np.exp2(draw.uniform(-3, 3, (blocks, 64))).astype(np.float32) if gained else None
    inverse = None if gains is None else np.float32(1) / gains
    mass, norm = draw.random((2, G, 16)).astype(np.float32)
    given_gains = (np.zeros(1, np.float32),) * 2 if gains is None else (gains, inverse)
    expected = twin.weighed(scores, top, gains, inverse, mass, norm, cls.scaled, cls.largest_weight)
    for own, run in zip((cls, portable_like(cls)), built(weigh, path, G, gained), strict=True):
        kept = np.zeros(blocks * G * cls.weight_bytes, np.uint8)
        scales, own_mass, own_norm = np.zeros((2, G), np.float32), mass.copy(), norm.copy()
        run(scores, 2, top, *given_gains, kept, scales, own_mass, own_norm)
        assert np.array_equal(kept, laid_out(own, expected[0]).reshape(-1).view(np.uint8))
        for found, wanted in zip((scales, own_mass, own_norm), expected[1:], strict=True):
            assert np.array_equal(found, wanted)


def test_an_exponential_is_right_to_the_last_bits():
    x = -np.linspace(0, 126, 20_011, dtype=np.float32)
    np.testing.assert_allclose(twin.exp2(x), np.exp2(x.astype(np.float64)), rtol=2.0**-22)


def test_the_largest_score_passes_over_what_is_no_number():
    scores = np.random.default_rng(0).standard_normal((3, 2, 64)).astype(np.float32) - 1000
    scores[1, 0, 7], scores[2, 1] = np.nan, -np.inf
    for run in built(largest, "avx512", 2):
        top = np.zeros(2, np.float32)
        run(scores, 3, top)
        assert np.array_equal(top, np.nanmax(scores, (0, 2)))
