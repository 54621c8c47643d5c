"""Backend `cpu` on poisoned batches against brute force in float64, and against `reference` on the same numbers."""

import itertools
from dataclasses import replace

import numba
import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build
from served import PARTS, SERVED, TURNING

from pqkv.cpu_path import CpuPath
from pqkv.errors import KernelError
from pqkv.kernels import ExactTokens
from pqkv.kernels.cpu import decode as decode_module
from pqkv.kernels.cpu import held as held_module
from pqkv.kernels.cpu.backend import attention
from pqkv.kernels.reference import attention as reference

pytestmark = pytest.mark.xdist_group("numba")  # one process compiles the kernels, not each its own
LENGTHS = (0, 1, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049, 4096, 4097)
LAYOUTS = list(itertools.product(["row", "transposed"], repeat=2))
RAGGED = {
    "sinks": (0, 1, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4),
    "residual": (1, 2, 3, 128, 70, 1, 64, 127, 90, 65, 100, 128, 77),
}
SINGLE = Spec(context=LENGTHS, dtype=torch.float32, unused="poison", head_dim=64, subspaces=(32, 16), **RAGGED)
SMALL = SINGLE.but(
    context=(0, 1, 63, 64, 65, 127, 300), sinks=(0, 1, 4, 4, 4, 4, 4), residual=(1, 2, 3, 128, 70, 1, 64)
)


def check(spec, *, window=None, rtol=2e-5, scale=None):
    """Relative to the largest element of the row, as attention errors are."""
    batch = build(spec)
    scale = spec.head_dim**-0.5 if scale is None else scale
    out, lse = attention(*batch.inputs, scale=scale, window=window)
    expected, expected_lse = brute_force(batch, scale, window)
    assert out.dtype == spec.dtype
    assert out.shape == batch.query.shape
    assert lse.shape == batch.query.shape[:3]
    size = np.abs(expected).max(-1, keepdims=True)
    assert (np.abs(out.double().numpy() - expected) <= rtol * np.maximum(size, 1e-6)).all()
    np.testing.assert_allclose(lse.double().numpy(), expected_lse, atol=1e-5, rtol=1e-6)


def in_ci(*cases):
    """Cases that compile kernels of their own: they run in `make test-ci`, which CI calls too."""
    return [pytest.param(*case, marks=[pytest.mark.slow, pytest.mark.ci]) for case in cases]


def later(*values):
    """`in_ci`, of cases that are one value."""
    return in_ci(*((value,) for value in values))


def seldom(*values):
    """Cases each of whose settings others have too, in another pair: `make test-slow` alone runs them."""
    return [pytest.param(*value, marks=pytest.mark.slow) for value in values]


TRANSPOSED, ROW = ("transposed", "transposed"), ("row", "row")


@pytest.mark.parametrize(
    ("layouts", "group"),
    [
        *((TRANSPOSED, 1), (TRANSPOSED, 4)),
        *in_ci((TRANSPOSED, 2), (TRANSPOSED, 8), (ROW, 1), (ROW, 4), (ROW, 8)),
        *seldom((ROW, 2)),
    ],
)
def test_every_group_and_length_equals_brute_force(layouts, group):
    check(SINGLE.but(group=group, layouts=layouts))


@pytest.mark.parametrize(
    ("dtype", "group"),
    [
        *((torch.float32, 1), (torch.float32, 4), (torch.bfloat16, 4), (torch.float16, 1)),
        *in_ci((torch.bfloat16, 3), (torch.float16, 8)),
        *seldom((torch.bfloat16, 1), (torch.float16, 4)),
        *seldom((torch.float32, 3), (torch.float32, 8), (torch.bfloat16, 8), (torch.float16, 3)),
    ],
)
def test_exact_pages_equal_brute_force_at_every_length(dtype, group):
    """`test_exact_forms` runs the vector code of every dtype for every group."""
    check(SINGLE.but(nbits=None, group=group, dtype=dtype), rtol=2e-5 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize("nbits", [1, 4, 6, 12, *later(3, 9)])
@pytest.mark.parametrize("layout", ["transposed", *later("row")])
def test_every_width_is_read_packed(nbits, layout):
    check(SMALL.but(nbits=nbits, layouts=(layout, layout), group=4, heads=1))


@pytest.mark.parametrize("page_size", [5, *later(1, 16, 48, 700)])
def test_pages_of_any_size(page_size):
    for nbits, layout in ((8, "transposed"), (6, "transposed"), (8, "row")):
        check(SMALL.but(page_size=page_size, nbits=nbits, layouts=(layout, layout), group=4))


@pytest.mark.parametrize("subspaces", [(16, 8), *later((64, 64), (8, 4), (4, 2))])
def test_every_width_of_a_subspace(subspaces):
    """Centroids of 1 to 32 elements: one register, several, tables, bins."""
    check(SMALL.but(group=4, subspaces=subspaces, per_head=False, channels=False, heads=1))


@pytest.mark.parametrize("window", [1, 5, 64, 200, 10_000])
@pytest.mark.parametrize("nbits", [None, 8])
def test_a_sliding_window_hides_what_is_older(window, nbits):
    check(SINGLE.but(nbits=nbits, group=4), window=window)


@pytest.mark.parametrize("missing", ["sinks", "residual", "both"])
@pytest.mark.parametrize("nbits", [None, 8])
def test_each_part_may_be_missing(missing, nbits):
    gone = {"both": ("sinks", "residual")}.get(missing, (missing,))
    check(SMALL.but(nbits=nbits, group=4, **dict.fromkeys(gone)))


@pytest.mark.parametrize("unused", ["poison", "garbage"])
@pytest.mark.parametrize("nbits", [None, 8, 6])
@pytest.mark.parametrize("queries", [1, 9])
def test_what_lies_in_unused_slots_changes_no_bit(unused, nbits, queries):
    spec = SMALL.but(nbits=nbits, group=4, queries=queries)
    clean, dirty = (attention(*build(spec.but(unused=u)).inputs, scale=0.2) for u in ("zero", unused))
    assert torch.equal(clean[0], dirty[0])
    assert torch.equal(clean[1], dirty[1])


def test_a_corrupted_page_entry_is_noticed():
    batch = build(SMALL.but(group=4))
    before = attention(*batch.inputs, scale=0.2)[0]
    table = batch.pages.page_table.clone()
    table[6, 2] = table[6, 3]
    after = attention(batch.query, replace(batch.pages, page_table=table), *batch.inputs[2:], scale=0.2)[0]
    assert not torch.equal(before[6], after[6])
    assert torch.equal(before[:6], after[:6])


@pytest.mark.parametrize("queries", [2, 4, 5, 40])
@pytest.mark.parametrize("nbits", [None, 8, 5])
@pytest.mark.parametrize("window", [None, 33])
def test_several_queries_are_causal(queries, nbits, window):
    spec = SMALL.but(nbits=nbits, group=4, queries=queries)
    check(spec, window=window)
    check(spec.but(residual=(40, 41, 42, 128, 70, 50, 64)), window=window)


def test_scores_far_below_zero_keep_their_mass():
    batch = build(SMALL.but(group=4))
    parts = []
    for part in (batch.sinks, batch.residual):
        parts.append(ExactTokens(part.keys * 0 - 30, part.values, part.length))
    query = batch.query.abs() + 1
    out, lse = attention(query, batch.pages, *parts, scale=2.0)
    expected, expected_lse = reference(query.double(), batch.pages, *parts, scale=2.0)
    assert torch.isfinite(lse[1:]).all()
    torch.testing.assert_close(out.double(), expected, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(lse, expected_lse, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("stretch", [64, 100, 1000])
def test_splits_change_nothing_but_rounding(stretch, monkeypatch):
    monkeypatch.setattr(decode_module, "_STRETCH", stretch)
    monkeypatch.setattr(decode_module, "_SHORTEST", 1)
    for nbits in (None, 8):
        check(SINGLE.but(nbits=nbits, group=4))


def test_the_number_of_threads_changes_nothing_but_rounding():
    batch = build(SINGLE.but(group=4))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(attention(*batch.inputs, scale=0.2)[0])
    torch.set_num_threads(before)
    torch.testing.assert_close(results[0], results[-1], atol=1e-5, rtol=1e-5)


def test_an_empty_batch_and_an_empty_cache():
    out, lse = attention(torch.randn(2, 1, 4, 16), None, None, None, scale=1.0)
    assert out.eq(0).all()
    assert lse.eq(float("-inf")).all()
    out, lse = attention(torch.randn(0, 1, 4, 16), None, None, None, scale=1.0)
    assert out.shape == (0, 1, 4, 16)


def test_float64_is_left_to_the_reference():
    batch = build(SMALL)
    with pytest.raises(KernelError, match="serves float32 and half precision"):
        attention(batch.query.double(), *batch.inputs[1:], scale=1.0)


def test_exact_parts_of_unlike_or_wide_numbers_are_read_as_what_they_are():
    """To rounding in float32, each part as its own dtype has it."""
    batch = build(SMALL.but(group=4))
    whole = attention(*batch.inputs, scale=0.2)[0]
    s, r = batch.sinks, batch.residual
    for sink_dtype, residual_dtype in (
        (torch.bfloat16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float64),
    ):
        sinks = ExactTokens(s.keys.to(sink_dtype), s.values.to(sink_dtype), s.length)
        residual = ExactTokens(r.keys.to(residual_dtype), r.values.to(residual_dtype), r.length)
        out = attention(batch.query, batch.pages, sinks, residual, scale=0.2)[0]
        expected = reference(batch.query.double(), batch.pages, sinks, residual, scale=0.2)[0]
        size = expected.abs().amax(-1, keepdim=True).clamp(min=1e-6)
        assert ((out - expected).abs() <= 2e-5 * size).all()
        rounded = ((out - whole).abs() > 1e-4 * size).any()
        assert rounded == (sink_dtype != torch.float64)


@pytest.mark.parametrize("nbits", [None, 8])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_query_that_is_not_a_number_is_not_hidden(nbits, bad):
    batch = build(SMALL.but(group=4, nbits=nbits))
    query = batch.query.clone()
    query[:, 0, 1, 3] = bad
    out, lse = attention(query, *batch.inputs[1:], scale=0.2)
    assert not torch.isfinite(out[:, 0, 1]).any()
    assert not torch.isfinite(lse[:, 0, 1]).any()
    assert torch.isfinite(out[:, 0, 0]).all()


def test_half_precision_keeps_infinity_and_nan():
    batch = build(SMALL.but(nbits=None, group=1, dtype=torch.float16, unused="zero"))
    values = batch.residual.values.clone()
    values[3, 0, 5, 7], values[3, 1, 5, 7] = float("inf"), float("nan")
    residual = ExactTokens(batch.residual.keys, values, batch.residual.length)
    out = attention(batch.query, batch.pages, batch.sinks, residual, scale=0.2)[0]
    assert out[3, 0, 0, 7].isinf()
    assert out[3, 0, 1, 7].isnan()
    assert torch.isfinite(out[3, 0, :, 6]).all()


def test_views_and_graphs_are_served():
    """Expanded centroids, pages that are slices, a query that carries a gradient."""
    batch = build(SMALL.but(group=4, per_head=False, channels=False, heads=2))
    expected = attention(*batch.inputs, scale=0.2)[0]
    p = batch.pages
    wide = torch.cat([p.keys.pages, p.keys.pages], 1)[:, :2]
    keys = replace(p.keys, pages=wide, centroids=p.keys.centroids.expand(2, -1, -1, -1))
    got = attention(
        batch.query.clone().requires_grad_(), replace(p, keys=keys), batch.sinks, batch.residual, scale=0.2
    )[0]
    assert torch.equal(got, expected)
    assert not got.requires_grad


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("group", [1, 4, *later(3)])
def test_what_is_served_beside_codes_follows_its_formulas(part, group, monkeypatch):
    """By floats, also where this processor has byte tables for these codes: they have limits and tests of their own."""
    monkeypatch.setattr(held_module, "cpu_path", lambda: CpuPath("float", "a test"))
    check(SINGLE.but(group=group, **part), rtol=5e-5)
    check(SMALL.but(group=group, queries=3, **part), rtol=5e-5)  # a query at a time
    check(SMALL.but(group=group, queries=9, **part), rtol=5e-5)  # many at once
    check(SMALL.but(group=group, page_size=5, layouts=("row", "row"), **part), window=70, rtol=5e-5)


def test_frequencies_in_any_order_are_no_other_type_to_compile_for():
    types = []
    for turning in ((), TURNING, (0.0, *TURNING)):  # the slow ones, 0 among them, are moved behind the fast ones
        step = decode_module.step_of(*build(SMALL.but(group=4, turning=turning)).inputs, scale=0.2)
        types.append([numba.typeof(part) for part in step.turning])
    assert types[0] == types[1] == types[2]


def test_the_bias_does_not_drift_at_131072_tokens():
    """Phases are made in float64, and restarted every 64 tokens: in float32 angles of 131,072 would be off by 0.01."""
    served = Spec(context=(131_072,), residual=(1,), dtype=torch.float32, head_dim=16, subspaces=(8, 4), **SERVED)
    batch = build(served)
    far = replace(batch.pages.query, phasors=batch.pages.query.phasors * 10)
    batch = replace(batch, pages=replace(batch.pages, query=far))
    scale = 0.25
    _, lse = attention(*batch.inputs, scale=scale)
    _, expected = reference(batch.query.double(), *batch.inputs[1:], scale=scale)
    assert float((lse - expected).abs().max()) < 1e-4
