import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import LENGTHS, Spec, brute_force, build
from served import PARTS

from pqkv.kernels import ExactTokens, reference
from pqkv.kernels.reference import attention

LAYOUTS = list(itertools.product(["row", "transposed"], repeat=2))
RAGGED = {"sinks": (0, 1, 4, 4, 4, 4, 4, 4, 4), "residual": (1, 2, 3, 128, 70, 1, 64, 127, 90)}
NO_PAGES = {"context": (0, 0, 0)}


def check(spec, *, scale=None, window=None, atol=1e-11, rtol=1e-11):
    batch = build(spec)
    scale = spec.head_dim**-0.5 if scale is None else scale
    out, lse = attention(*batch.inputs, scale=scale, window=window)
    expected_out, expected_lse = brute_force(batch, scale, window)
    assert out.dtype == spec.dtype
    assert out.shape == batch.query.shape
    assert lse.shape == batch.query.shape[:3]
    np.testing.assert_allclose(out.double().numpy(), expected_out, atol=atol, rtol=rtol)
    np.testing.assert_allclose(lse.double().numpy(), expected_lse, atol=atol, rtol=rtol)


@pytest.fixture(params=["look-up", "decode", "as is"])
def path(request, monkeypatch):
    """Both ways to take codes, whatever the number of queries."""
    if request.param != "as is":
        monkeypatch.setattr(reference, "LOOKUP_QUERIES", 10**9 if request.param == "look-up" else 0)
    return request.param


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("nbits", [None, 8])
@pytest.mark.parametrize("queries", [1, 6])
def test_grouped_heads_equal_brute_force(group, head_dim, nbits, queries):
    check(Spec(group=group, head_dim=head_dim, nbits=nbits, queries=queries, **RAGGED))


@pytest.mark.parametrize("group", [4, 8])
def test_one_kv_head_serves_all_query_heads(group):
    check(Spec(heads=1, group=group, **RAGGED))
    check(Spec(heads=1, group=group, nbits=None, **RAGGED))


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("nbits", [8, 6, 4, 3, 12])
def test_every_layout_and_width_equals_brute_force_on_both_paths(layouts, nbits, path):
    check(Spec(layouts=layouts, nbits=nbits, subspaces=(8, 4), head_dim=16, group=2, **RAGGED))


@pytest.mark.parametrize("page_size", [1, 5, 16, 64, 700, 1000])
@pytest.mark.parametrize("nbits", [None, 3, 8])
def test_pages_of_any_size_equal_brute_force(page_size, nbits):
    for layouts in LAYOUTS[: 1 if nbits is None else None]:
        spec = Spec(page_size=page_size, nbits=nbits, layouts=layouts, head_dim=16, subspaces=(8, 4))
        check(spec.but(context=(0, 1, 5, 6, 71), residual=(2, 0, 1, 0, 3)))


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("channels", [False, True])
def test_shared_codebooks_and_channel_orders_are_honoured(per_head, channels, path):
    check(Spec(per_head=per_head, channels=channels, subspaces=(4, 16), head_dim=32, group=2, **RAGGED))


@pytest.mark.parametrize("sinks", [None, RAGGED["sinks"]])
@pytest.mark.parametrize("residual", [None, RAGGED["residual"]])
@pytest.mark.parametrize("nbits", [None, 6])
@pytest.mark.parametrize("queries", [1, 3])
def test_each_part_may_be_missing(sinks, residual, nbits, queries):
    spec = Spec(sinks=sinks, residual=residual, nbits=nbits, queries=queries, group=2, head_dim=16)
    check(spec)
    batch = build(spec)
    if sinks and residual:
        alone = replace(batch, pages=None, keys=[], values=[])
        lengths = [a + b for a, b in zip(sinks, residual, strict=True)]
        for b, (a, n, total) in enumerate(zip(sinks, spec.context, lengths, strict=True)):
            kept = np.r_[:a, a + n : n + total]
            alone.keys.append(batch.keys[b][:, kept])
            alone.values.append(batch.values[b][:, kept])
        out, lse = attention(*alone.inputs, scale=0.1)
        expected_out, expected_lse = brute_force(alone, 0.1)
        np.testing.assert_allclose(out.numpy(), expected_out, atol=1e-12)
        np.testing.assert_allclose(lse.numpy(), expected_lse, atol=1e-12)


@pytest.mark.parametrize("window", [1, 5, 64, 10_000])
@pytest.mark.parametrize("nbits", [None, 8])
@pytest.mark.parametrize("queries", [1, 7])
def test_a_sliding_window_hides_what_is_older(window, nbits, queries):
    check(Spec(nbits=nbits, queries=queries, group=2, head_dim=16, **RAGGED), window=window)


@pytest.mark.parametrize("nbits", [None, 8])
@pytest.mark.parametrize("window", [None, 5])
def test_queries_before_the_first_token_are_padding(nbits, window):
    spec = Spec(nbits=nbits, queries=9, context=(0, 1, 5, 9, 70), residual=(0, 2, 3, 0, 1), group=2)
    check(spec, window=window)
    batch = build(spec)
    out, lse = attention(*batch.inputs, scale=0.1, window=window)
    for b, tokens in enumerate((0, 3, 8, 9, 71)):
        padding = max(0, 9 - tokens)
        assert (out[b, :padding] == 0).all()
        assert (lse[b, :padding] == float("-inf")).all()
        assert torch.isfinite(lse[b, padding:]).all()


def test_many_queries_see_only_what_stands_before_them(path):
    check(Spec(queries=40, context=(300, 64), residual=(40, 23), sinks=(4, 4), group=2))


def test_score_tiles_change_nothing(monkeypatch):
    spec = Spec(queries=20, context=(90, 0), residual=(20, 13), sinks=(4, 4), group=2)
    batch = build(spec)
    whole = attention(*batch.inputs, scale=0.1, window=50)
    for elements in (1, 114 * 4 * 7):  # one query row a tile, seven rows
        monkeypatch.setattr(reference, "_TILE_ELEMENTS", elements)
        check(spec, window=50)
        for one, other in zip(whole, attention(*batch.inputs, scale=0.1, window=50), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nbits", [None, 8, 4])
@pytest.mark.parametrize("queries", [1, 6])
def test_float32_is_within_its_rounding_of_float64(nbits, queries):
    check(Spec(nbits=nbits, queries=queries, group=2, dtype=torch.float32, **RAGGED), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("nbits", [None, 8])
def test_half_precision_is_accumulated_in_float32(dtype, nbits):
    spec = Spec(nbits=nbits, group=2, dtype=dtype, **RAGGED)
    batch = build(spec)
    out, lse = attention(*batch.inputs, scale=0.125)
    expected_out, expected_lse = brute_force(batch, 0.125)
    assert (out.dtype, lse.dtype) == (dtype, torch.float64)
    np.testing.assert_allclose(lse.numpy(), expected_lse, rtol=1e-5, atol=1e-5)
    # one rounding of the result, no more
    np.testing.assert_allclose(out.double().numpy(), expected_out, rtol=torch.finfo(dtype).eps, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("nbits", [None, 8])
@pytest.mark.parametrize("tokens", [1, 17, 31, 32, 33, 64, 96, 128])
def test_scores_far_below_zero_keep_their_softmax(dtype, nbits, tokens):
    spec = Spec(nbits=nbits, context=(tokens,), residual=(3,), dtype=dtype, channels=False, heads=1, group=2)
    batch = build(spec)
    sides = [batch.pages.keys.pages, batch.residual.keys, batch.pages.keys.centroids]
    for tensor in sides:
        if tensor is not None and tensor.is_floating_point():
            tensor.abs_()
    batch = replace(batch, query=-batch.query.abs(), keys=[np.abs(keys) for keys in batch.keys])
    scale = 100.0
    expected_out, expected_lse = brute_force(batch, scale)
    assert expected_lse.max() < -1000
    out, lse = attention(*batch.inputs, scale=scale)
    tolerance = {"rtol": 1e-6, "atol": 5e-3} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-9}
    np.testing.assert_allclose(lse.double().numpy(), expected_lse, **tolerance)
    np.testing.assert_allclose(out.double().numpy(), expected_out, **tolerance)


@pytest.mark.parametrize("nbits", [None, 8])
@pytest.mark.parametrize("queries", [1, 6])
def test_values_of_one_come_out_as_one(nbits, queries):
    spec = Spec(nbits=nbits, queries=queries, context=(64, 700), residual=(6, 90), sinks=(4, 4), group=2)
    batch = build(spec)
    values = batch.pages.values
    (values.pages if nbits is None else values.centroids).fill_(1)
    batch.sinks.values.fill_(1)
    batch.residual.values.fill_(1)
    out, _ = attention(*batch.inputs, scale=0.125)
    assert float((out - 1).abs().max()) < 1e-13


@pytest.mark.parametrize("queries", [0, 1, 3])
def test_nothing_at_all_gives_zero_and_minus_infinity(queries):
    query = torch.randn(2, queries, 4, 8, generator=torch.Generator().manual_seed(0))
    empty = build(Spec(**NO_PAGES, sinks=(0, 0, 0), residual=(0, 0, 0), queries=queries))
    for inputs in ((query, None, None, None), empty.inputs):
        out, lse = attention(*inputs, scale=1.0)
        assert out.shape == inputs[0].shape
        assert (out == 0).all()
        assert (lse == float("-inf")).all()


def test_an_empty_batch_gives_an_empty_result():
    out, lse = attention(torch.empty(0, 1, 4, 8), None, None, None, scale=1.0)
    assert (out.shape, lse.shape) == ((0, 1, 4, 8), (0, 1, 4))


@pytest.mark.parametrize("nbits", [None, 8])
def test_a_sequence_is_alone_in_its_batch(nbits):
    """Empty and long neighbours change nothing."""
    batch = build(Spec(nbits=nbits, group=2, **RAGGED))
    out, lse = attention(*batch.inputs, scale=0.1)
    for b in range(len(LENGTHS)):
        mine = slice(b, b + 1)
        pages = replace(batch.pages, page_table=batch.pages.page_table[mine], context_len=batch.pages.context_len[mine])
        parts = [ExactTokens(x.keys[mine], x.values[mine], x.length[mine]) for x in batch.inputs[2:]]
        alone = attention(batch.query[mine], pages, *parts, scale=0.1)
        assert torch.equal(alone[0][0], out[b])
        assert torch.equal(alone[1][0], lse[b])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("queries", [1, 6])
def test_what_is_served_beside_codes_follows_its_formulas(part, layouts, queries, path):
    check(
        Spec(layouts=layouts, group=2, queries=queries, head_dim=16, subspaces=(8, 4), nbits=6, **part, **RAGGED),
        atol=1e-9, rtol=1e-9,
    )  # fmt: skip
    check(Spec(layouts=layouts, page_size=5, head_dim=16, subspaces=(8, 4), **part, **RAGGED), window=70, atol=1e-9)
