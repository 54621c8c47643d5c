"""Backend `cpu` by look-ups in byte tables, on poisoned ragged batches, against brute force in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from kernels.batches import Spec, brute_force, build
from kernels.served import TURNING

from pqkv.cpu_path import CpuPath, cpu_path
from pqkv.kernels import get_backend
from pqkv.kernels.cpu import decode as decode_module
from pqkv.kernels.cpu import held as held_module
from pqkv.kernels.cpu.backend import attention
from pqkv.kernels.cpu.byte_lookups.prepare import heads_at_once, serves_bytes, with_rounded_centroids
from pqkv.speed.check import BYTE_TOLERANCES

pytestmark = pytest.mark.xdist_group("numba")
LENGTHS = (0, 1, 63, 64, 65, 127, 128, 129, 2047, 2049, 4097)
PARTS = {"sinks": (0, 1, *[4] * 9), "residual": (1, 2, 3, 128, 70, 1, 64, 127, 90, 65, 128)}
SPEC = Spec(
    context=LENGTHS, dtype=torch.float32, unused="poison", head_dim=64, group=4, nbits=6, subspaces=(32, 32), int8=True,
    **PARTS,
)  # fmt: skip


def later(*values):
    """Cases that compile kernels of their own, some ten seconds each."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def in_ci(*values):
    """Of these, the ones that CI runs too."""
    return [pytest.param(value, marks=[pytest.mark.slow, pytest.mark.ci]) for value in values]


@pytest.fixture(autouse=True)
def vectors(monkeypatch):
    """The best path of the processor at hand, plain LLVM where it has none."""
    use(monkeypatch, cpu_path().name if cpu_path().name != "float" else "portable")


def use(monkeypatch, name):
    monkeypatch.setattr(held_module, "cpu_path", lambda: CpuPath(name, "a test"))


def check(spec, *, window=None, spread=1.0, planes=2):
    batch = build(spec)
    scale = spread * spec.head_dim**-0.5
    assert serves_bytes(batch.pages, spec.group, held_module.cpu_path())
    out, lse = attention(*batch.inputs, scale=scale, window=window, planes=planes)
    expected, expected_lse = brute_force(batch, scale, window)
    gap = np.linalg.norm(out.double().numpy() - expected, axis=-1)
    error = gap / np.maximum(np.linalg.norm(expected, axis=-1), 1e-30)
    assert (error <= max(1, spread / 4) * BYTE_TOLERANCES[planes]).all()
    assert planes == 2 or np.sqrt((error**2).mean()) <= 2e-2
    np.testing.assert_allclose(lse.double().numpy(), expected_lse, atol=spread * (1e-4, 2e-2)[planes == 1], rtol=1e-6)


planes = pytest.mark.parametrize("planes", [2, 1])


@pytest.mark.parametrize("group", [4, *in_ci(8), *later(1, 2, 3)])
@pytest.mark.parametrize("served", [{}, {"turning": (0.0, *TURNING), "gains": True}], ids=["plain", "served"])
def test_every_length(group, served):
    check(SPEC.but(group=group, **served))


@pytest.mark.parametrize("group", [9, *later(12, 16, 32)])
def test_larger_groups_are_served_in_parts(group):
    """Of three, six and eight heads: each finds its own queries, turns and place in what comes out."""
    spec = SPEC.but(group=group, turning=(0.0, *TURNING), gains=True, context=(0, 1, 65, 300), sinks=None)
    check(spec.but(residual=(1, 2, 3, 4)), window=250)


@pytest.mark.parametrize(
    ("group", "together"), [(1, 1), (7, 7), (8, 8), (9, 3), (12, 6), (14, 7), (16, 8), (24, 8), (71, 1)]
)
def test_heads_that_share_a_look_up(group, together):
    assert heads_at_once(group) == together


@pytest.mark.parametrize("served", [{}, {"turning": (0.0, *TURNING), "gains": True}], ids=["plain", "served"])
def test_every_length_of_the_byte_form(served):
    check(SPEC.but(**served), planes=1)


@pytest.mark.parametrize("nbits", in_ci(8, 4))
def test_the_byte_form_in_plain_llvm(nbits, monkeypatch):
    use(monkeypatch, "portable")
    check(SPEC.but(nbits=nbits, context=(0, 1, 65, 300), sinks=None, residual=(1, 2, 3, 4)), planes=1)


def test_the_byte_form_is_another_result():
    """Else nobody would know that one byte was taken for two."""
    batch = build(SPEC.but(context=(300,), sinks=None, residual=(1,)))
    two, one = (attention(*batch.inputs, scale=0.125, planes=n)[0] for n in (2, 1))
    gap = float((two - one).norm(dim=-1).max() / two.norm(dim=-1).max())
    assert 10 * BYTE_TOLERANCES[2] < gap < BYTE_TOLERANCES[1]


@pytest.mark.parametrize("nbits", [4, *later(6)])
@pytest.mark.parametrize("subspaces", [(64, 16), *later((32, 8), (16, 64))])
def test_every_width_of_a_subspace(nbits, subspaces):
    check(SPEC.but(nbits=nbits, subspaces=subspaces, context=(0, 1, 65, 300), sinks=None, residual=(1, 2, 3, 4)))


@pytest.mark.parametrize("head_dim", [80, *in_ci(256), *later(96, 128)])
def test_heads_of_any_size(head_dim):
    """One codebook for all heads, and channels in their natural order."""
    spec = SPEC.but(head_dim=head_dim, subspaces=(head_dim // 2,) * 2, context=(65, 300), sinks=None, residual=(1, 2))
    check(spec.but(channels=False, per_head=False))


@pytest.mark.parametrize("nbits", [8, *later(6, 4)])
def test_plain_llvm_serves_every_width(nbits, monkeypatch):
    use(monkeypatch, "portable")
    check(SPEC.but(nbits=nbits, context=(0, 1, 65, 300), sinks=None, residual=(1, 2, 3, 4), gains=True))


@pytest.mark.parametrize("window", [1, 64, 200, 10_000])
@planes
def test_a_sliding_window_hides_what_is_older(window, planes):
    check(SPEC, window=window, planes=planes)


@pytest.mark.parametrize("stretch", [64, 192, 1000])
def test_splits_change_nothing_but_rounding(stretch, monkeypatch):
    monkeypatch.setattr(decode_module, "_STRETCH", stretch)
    monkeypatch.setattr(decode_module, "_SHORTEST", 1)
    check(SPEC)


def test_pages_of_several_blocks():
    check(SPEC.but(page_size=192, gains=True), window=333)


@pytest.mark.parametrize("unused", ["poison", "garbage"])
@planes
def test_what_lies_in_unused_slots_changes_no_bit(unused, planes):
    batches = (build(SPEC.but(unused=u, gains=True)) for u in ("zero", unused))
    clean, dirty = (attention(*batch.inputs, scale=0.2, planes=planes) for batch in batches)
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])


@pytest.mark.parametrize("spread", [3, 8])
def test_scores_far_apart(spread):
    """A query's rounding moves scores by 3.2e-5 of their standard deviation, and weights with them."""
    check(SPEC, spread=spread)


@planes
def test_scores_far_below_zero_keep_their_mass(planes):
    """All of them 600 below what exact tokens score, and equal: nothing of theirs may be lost to a power of two."""
    spec = SPEC.but(turning=(0.0,), sinks=None, residual=None)
    batch = build(spec)
    low = torch.zeros_like(batch.pages.query.phasors)
    low[..., 0] = -600.0 / 0.1
    pages = replace(batch.pages, query=replace(batch.pages.query, phasors=low))
    out, lse = attention(batch.query, pages, None, None, scale=0.1, planes=planes)
    expected, expected_lse = get_backend("reference")(batch.query.double(), pages, None, None, scale=0.1)
    seen = torch.tensor(spec.context) > 0
    assert (lse[seen] < -500).all()
    torch.testing.assert_close(lse[seen], expected_lse[seen].double(), atol=(2e-3, 2e-2)[planes == 1], rtol=0)
    gap = (out.double() - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-30)
    assert gap.max() < max(1e-3, BYTE_TOLERANCES[planes])  # scores of float32 around -600 are off by 6e-5 themselves


@planes
def test_one_token_dominates_131072(planes):
    """Its block's other weights become integers of a step or none, all others keep theirs."""
    spec = SPEC.but(
        context=(131_072,), sinks=None, residual=None, heads=1, unused="zero", head_dim=16, subspaces=(8, 8)
    )
    batch = build(spec)
    keys = batch.keys[0][0]
    place = 70_000
    query = torch.from_numpy(keys[place] * (math.log(131_072) / (keys[place] @ keys[place]) / 0.125)).float()
    batch = replace(batch, query=query.expand(1, 1, 4, -1))
    out, lse = attention(*batch.inputs, scale=0.125, planes=planes)
    expected, expected_lse = brute_force(batch, 0.125)
    gap = np.linalg.norm(out[0, 0, 0].double().numpy() - expected[0, 0, 0]) / np.linalg.norm(expected[0, 0, 0])
    assert gap < BYTE_TOLERANCES[planes]
    np.testing.assert_allclose(lse.numpy(), expected_lse, atol=(1e-4, 2e-2)[planes == 1])


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@planes
def test_a_query_that_is_no_number_gives_none(poison, planes):
    batch = build(SPEC.but(context=(65,), sinks=None, residual=(1,)))
    query = batch.query.clone()
    query[0, 0, 1, 3] = poison
    out, _ = attention(query, *batch.inputs[1:], scale=0.2, planes=planes)
    assert out[0, 0, 1].isnan().all()
    assert out[0, 0, [0, 2, 3]].isfinite().all()


def test_centroids_of_floats_are_rounded_where_asked():
    batch = build(SPEC.but(int8=False, context=(65, 300), sinks=None, residual=(1, 2)))
    pages = replace(batch.pages, **{s: with_rounded_centroids(getattr(batch.pages, s)) for s in ("keys", "values")})
    expected, _ = get_backend("reference")(batch.query.double(), pages, *batch.inputs[2:], scale=0.125)
    exact, _ = get_backend("reference")(*[batch.query.double(), *batch.inputs[1:]], scale=0.125)
    rounded, _ = attention(*batch.inputs, scale=0.125, rounded=True)
    size = expected.norm(dim=-1).clamp(min=1e-30)
    assert ((rounded.double() - expected).norm(dim=-1) / size).max() < BYTE_TOLERANCES[2]
    assert 1e-4 < ((expected - exact).norm(dim=-1) / size).max() < 2e-2


@pytest.mark.parametrize(
    "change",
    [{"layouts": ("row", "transposed")}, {"page_size": 48}, {"nbits": 5}, {"int8": False}, {"subspaces": (4, 4)}],
    ids=str,
)
def test_what_byte_tables_do_not_serve_goes_by_floats(change):
    batch = build(SPEC.but(**change))
    assert not serves_bytes(batch.pages, 4, held_module.cpu_path())


@pytest.mark.parametrize("group", [10, 11, 22, 71])
def test_groups_that_fall_into_no_parts_worth_it_go_by_floats(group):
    served = serves_bytes(build(SPEC).pages, group, held_module.cpu_path())
    assert served == (group == 10)
