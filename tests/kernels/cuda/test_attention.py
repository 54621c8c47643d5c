"""Backends `cuda` and `cuda-naive` on poisoned batches against brute force in float64.

Small cases run under the simulator too; those that name `gpu_only` are the full list of lengths and shapes.
"""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build
from served import PARTS, SERVED

from pqkv.errors import KernelError
from pqkv.kernels.cuda import backend, naive
from pqkv.kernels.cuda.backend import attention
from pqkv.kernels.cuda.coded import CodedVariant
from pqkv.kernels.cuda.exact import ExactVariant
from pqkv.kernels.cuda.launch import launch
from pqkv.kernels.cuda.merge import merge_block
from pqkv.kernels.cuda.plain import PlainVariant
from pqkv.kernels.cuda.splits import stretches
from pqkv.kernels.splits import split_step

SMALL = Spec(
    context=(0, 1, 65), sinks=(0, 1, 4), residual=(1, 2, 3), head_dim=16, heads=1, group=2, subspaces=(8, 8), nbits=4,
    dtype=torch.float32, unused="poison",
)  # fmt: skip
EXACT = SMALL.but(nbits=None, layouts=("row", "row"))
ALONE = EXACT.but(sinks=None, residual=None)
LENGTHS = (0, 1, 63, 64, 65, 127, 128, 129, 2047, 2048, 2049, 4096, 8191, 32768)
LONG = SMALL.but(
    context=LENGTHS, sinks=(0, 1) + (4,) * 12, residual=(1, 2, 3, 128, 70, 1, 64, 127, 90, 65, 100, 128, 77, 64),
    head_dim=128, heads=2, subspaces=(64, 64), nbits=8,
)  # fmt: skip
BESIDE = [SMALL.but(**SERVED), SMALL.but(dtype=torch.float16, **SERVED)]
too_long = pytest.mark.skipif(
    os.environ.get("NUMBA_ENABLE_CUDASIM") == "1", reason="seconds under the simulator; its neighbours run there"
)
beside = pytest.mark.parametrize("spec", BESIDE, ids=["plain", "coded"])
kinds = pytest.mark.parametrize(
    "spec", [EXACT, SMALL, SMALL.but(dtype=torch.float16), *BESIDE],
    ids=["exact", "plain", "coded", "plain with all", "coded with all"],
)  # fmt: skip
# of the largest element of a row: fp16 tables hold 11 bits of a centroid, and the query's sums are in fp16x2
TOLERANCE = {torch.float32: 3e-5, torch.float16: 3e-3, torch.bfloat16: 1e-2}


def moved(part, device):
    return None if part is None else part.to(device)


def check(spec, device, *, window=None, run=attention, lse_error=None):
    batch = build(spec)
    scale = spec.head_dim**-0.5
    out, lse = run(*(moved(part, device) for part in batch.inputs), scale=scale, window=window)
    expected, expected_lse = brute_force(batch, scale, window)
    assert out.dtype == spec.dtype
    size = np.abs(expected).max(-1, keepdims=True)
    error = np.abs(out.double().cpu().numpy() - expected) / np.maximum(size, 1e-6)
    assert error.max() <= TOLERANCE[spec.dtype]
    bound = lse_error or (1e-5 if spec.dtype == torch.float32 or spec.nbits is None else 3e-3)
    np.testing.assert_allclose(lse.double().cpu().numpy(), expected_lse, atol=bound, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_exact_pages(dtype, device):
    check(EXACT.but(dtype=dtype), device)


@pytest.mark.parametrize("block", [1, 17, 31, 32, 33, 64, 96, 128])
def test_reductions_are_right_at_every_block_size(block, device, monkeypatch):
    """Scores all far below zero: a maximum that starts at 0, or one of too few lanes, shows."""
    spec = ALONE.but(context=(0, 1, 65, 40), group=1)
    batch = build(spec)
    batch.pages.keys.pages.copy_(-batch.query.mean() * 0 - 3 + 0.1 * batch.pages.keys.pages)
    query = batch.query.abs() + 1
    inputs = [moved(part, device) for part in (query, batch.pages)]
    ids, P = batch.pages.page_table, batch.pages.page_size
    for b, keys in enumerate(batch.keys):
        n = keys.shape[1]
        for t in range(n):
            keys[0, t] = batch.pages.keys.pages[ids[b, t // P], 0, t % P].double().numpy()
    expected = brute_force(replace(batch, query=query), 1.0)
    assert expected[1][1:].max() < -20
    monkeypatch.setattr(backend, "ExactVariant", partial(ExactVariant, block=block))
    for run in (attention, partial(naive.attention, block=block)):
        out, lse = run(*inputs, None, None, scale=1.0)
        np.testing.assert_allclose(lse.cpu().numpy(), expected[1], rtol=1e-5)
        np.testing.assert_allclose(out.cpu().numpy(), expected[0], atol=1e-4)


@pytest.mark.parametrize("splits", [1, 3, 7])
@kinds
def test_any_number_of_splits_of_the_pages(spec, splits, device):
    taken = []

    def run(*parts, scale, window):
        step = split_step("cuda", *parts, scale=scale, window=window, splits=splits)
        taken.append(step.splits)
        return step.run()

    check(spec, device, run=run)
    assert abs(taken[0] - splits) <= 1  # of codes whole steps of tokens, and one more for a window


@pytest.mark.parametrize("layout", ["row", "transposed"])
@pytest.mark.parametrize("nbits", [3, 8, 12])
def test_codes_in_float32_at_any_width(nbits, layout, device):
    check(SMALL.but(nbits=nbits, layouts=(layout, layout)), device)


@pytest.mark.parametrize("layouts", [("transposed", "transposed"), ("row", "row"), ("row", "transposed")])
@pytest.mark.parametrize(("nbits", "group"), [(8, 1), (4, 2), (8, 4), (6, 1)])
def test_codes_from_fp16_tables(nbits, group, layouts, device):
    check(SMALL.but(nbits=nbits, group=group, layouts=layouts, dtype=torch.float16), device)


def test_centroids_of_four_elements_and_shared_by_heads(device):
    check(SMALL.but(subspaces=(4, 4), heads=2, per_head=False, dtype=torch.float16), device)
    check(SMALL.but(subspaces=(4, 4), group=4, channels=False, dtype=torch.bfloat16), device)


@pytest.mark.parametrize(("block", "group"), [(64, 4), (256, 1)])
def test_blocks_of_several_warps_reduce_over_all_of_them(block, group, device, monkeypatch):
    monkeypatch.setattr(backend, "coded_variant", partial(CodedVariant, block=block))
    check(SMALL.but(group=group, dtype=torch.float16, context=(0, 1, 600)), device)


@pytest.mark.parametrize("spec", [
    EXACT, EXACT.but(dtype=torch.float16), EXACT.but(head_dim=64), SMALL, SMALL.but(dtype=torch.float16),
    SMALL.but(dtype=torch.float16, layouts=("row", "row")), SMALL.but(dtype=torch.float16, group=1), *BESIDE,
], ids=["exact", "exact half", "exact, merged by two", "plain", "coded", "coded rows",
        "coded one head", "plain with all", "coded with all"])  # fmt: skip
def test_every_kernel_reduces_over_two_warps_that_both_hold_tokens(spec, device, monkeypatch):
    """A thread reads 4 or 8 tokens' codes, so that 300 tokens reach the second warp: what stays in a warp shows."""
    for name, variant in (
        ("ExactVariant", ExactVariant),
        ("PlainVariant", PlainVariant),
        ("coded_variant", CodedVariant),
    ):
        monkeypatch.setattr(backend, name, partial(variant, block=64))
    monkeypatch.setattr(backend, "choose_splits", lambda *units, **rule: 1 if spec.head_dim == 16 else 3)
    monkeypatch.setattr(backend, "choose_coded_splits", lambda *units, **rule: 1)
    held = []
    monkeypatch.setattr(backend, "launch", lambda kernel, grid, block, *given: (
        held.append(block), launch(kernel, grid, block, *given)))  # fmt: skip
    check(spec.but(context=(300, 0), sinks=None, residual=None), device)
    assert held == [64, merge_block(spec.head_dim)]


@pytest.mark.parametrize("window", [1, 5, 50])
@kinds
def test_a_sliding_window_hides_what_is_older(spec, window, device):
    check(spec, device, window=window)


@kinds
def test_unused_memory_changes_no_bit(spec, device):
    clean, *dirty = (
        attention(*(moved(p, device) for p in build(spec.but(unused=u)).inputs), scale=0.2)
        for u in ("zero", "poison", "garbage")
    )
    for other in dirty:
        assert torch.equal(clean[0], other[0])
        assert torch.equal(clean[1], other[1])


@kinds
def test_splits_change_nothing_but_rounding(spec, device, monkeypatch):
    monkeypatch.setattr(backend, "choose_splits", lambda units, tokens, multiprocessors, **rule: 3)
    check(spec, device)


@kinds
def test_a_query_that_is_not_a_number_is_not_hidden(spec, device):
    query, *rest = build(spec).inputs
    query = query.clone()
    query[2, 0, 1, 3] = float("nan")
    out, lse = attention(*(moved(part, device) for part in (query, *rest)), scale=0.2)
    assert not torch.isfinite(out[2, 0, 1]).any()
    assert not torch.isfinite(lse[2, 0, 1]).any()
    assert torch.isfinite(out[2, 0, 0]).all()


@pytest.mark.parametrize("part", ["query", "phasors"])
@beside
def test_what_codes_meet_that_is_not_a_number_is_not_hidden(spec, part, device):
    query, pages, *rest = build(spec).inputs
    spoilt = getattr(pages.query, part).clone()
    spoilt[2, 0, 1, 3] = float("nan")
    pages = replace(pages, query=replace(pages.query, **{part: spoilt}))
    out, lse = attention(*(moved(part, device) for part in (query, pages, *rest)), scale=0.2)
    assert not torch.isfinite(out[2, 0, 1]).any()
    assert not torch.isfinite(lse[2, 0, 1]).any()
    assert torch.isfinite(out[2, 0, 0]).all()


def fast_variant(spec):
    """The variant of `coded_kernel` that serves a spec; None where the plain kernel does."""
    step = backend.Step(*build(spec).inputs, scale=1.0, window=0)
    return step.fast(step.pages)


@pytest.mark.parametrize("part", PARTS, ids=["query", "bias", "gains", "int8", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_served_beside_codes(part, dtype, device):
    assert (fast_variant(SMALL.but(dtype=dtype, **part)) is None) == (dtype == torch.float32)
    check(SMALL.but(dtype=dtype, **part), device)


@pytest.mark.parametrize("layouts", [("row", "row"), ("row", "transposed"), ("transposed", "row")])
@pytest.mark.parametrize("group", [1, 3, 4])
@beside
def test_all_of_it_in_every_layout_for_every_group(spec, group, layouts, device):
    check(spec.but(group=group, layouts=layouts, heads=2 if group == 1 else 1), device)


@pytest.mark.parametrize(("group", "of_block"), [
    pytest.param(10, 5, marks=too_long),
    (11, 6),  # the second block has one of the first's
])  # fmt: skip
@beside
def test_all_of_it_where_a_group_takes_several_blocks_and_heads_share_centroids(spec, group, of_block, device):
    assert backend.heads_of_block(group) == of_block
    check(spec.but(group=group, heads=2, per_head=False), device)


@pytest.mark.parametrize(("group", "of_block"), [(1, 1), (7, 7), (8, 8), (9, 5), (12, 6), (16, 8), (17, 6), (71, 8)])
def test_a_group_takes_as_few_blocks_as_can_be(group, of_block):
    assert backend.heads_of_block(group) == of_block
    assert -(-group // of_block) == -(-group // 8)


@pytest.mark.parametrize("dtype", [
    torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=too_long),
])  # fmt: skip
def test_exact_pages_of_groups_in_uneven_blocks(dtype, device):
    check(EXACT.but(group=11, heads=2, dtype=dtype), device)


@pytest.mark.parametrize(("spec", "fast"), [
    (BESIDE[0].but(page_size=5), False),
    (BESIDE[1].but(page_size=24), False),
    (BESIDE[1].but(page_size=24, layouts=("row", "row")), True),
    (BESIDE[1].but(page_size=128, nbits=6), True),
])  # fmt: skip
def test_pages_of_any_size_with_all_of_it(spec, fast, device):
    """Where blocks of turns begin has nothing to do with where pages do."""
    assert (fast_variant(spec) is not None) == fast
    check(spec, device)
    check(spec.but(context=(130, 64, 7)), device, window=75)


@pytest.mark.parametrize("window", [None, 333])
@pytest.mark.parametrize(("spec", "block"), [
    (BESIDE[0], 32), (BESIDE[1], 32), (BESIDE[1].but(group=4), 64), (BESIDE[1].but(group=1), 256),
], ids=["plain", "coded", "two warps", "eight warps"])  # fmt: skip
def test_a_stretch_lies_in_many_blocks_of_turns(spec, block, window, device, monkeypatch):
    monkeypatch.setattr(backend, "coded_variant", partial(CodedVariant, block=block))
    check(spec.but(context=(0, 1, 700)), device, window=window)


@pytest.mark.parametrize("frequencies", [
    (0.01, 1.0, 0.7, 0.5, 0.3, 0.2, 0.11, 0.07, 0.05, 0.03, 0.0), (0.5, 0.04), (0.02, 0.0),
], ids=["many", "fast", "slow"])  # fmt: skip
@beside
def test_any_number_of_pairs_turns(spec, frequencies, device):
    spec = spec.but(turning=frequencies, context=(0, 1, 200))
    if variant := fast_variant(spec):
        assert 0 < variant.turned_pairs < 9  # of the many, not all at a time
    # the powers that stand for slow pairs leave out 2e-5 of their phasors at most
    check(spec, device, lse_error=3e-5 if variant is None else None)


@beside
def test_the_bias_does_not_drift_at_131072_tokens(spec, device, monkeypatch):
    """Codes score nothing here, so that what fp16 tables leave out of them hides no drift."""
    monkeypatch.setattr(backend, "stretches", lambda *given, **rule: (stretches(*given, **rule)[0], 2))  # of a window
    batch = build(spec.but(context=(131_072,), sinks=None, residual=(1,), group=1, turning=(0.7, 0.31, 0.05, 0.003)))
    own = batch.pages.query
    own = replace(own, query=own.query * 0, phasors=own.phasors * 10)
    batch = replace(batch, pages=replace(batch.pages, query=own))
    _, lse = attention(*(moved(part, device) for part in batch.inputs), scale=0.25, window=200)
    _, expected = brute_force(batch, 0.25, 200)
    np.testing.assert_allclose(lse.double().cpu().numpy(), expected, atol=1e-4, rtol=0)
    # the same of float32 angles would be seen
    angles = np.float32(own.frequencies)[:, None] * np.arange(131_072 - 199, 131_072, dtype=np.float32)
    even, odd = own.phasors[0, 0, 0].double().numpy().T
    biases = even @ np.cos(np.float64(angles)) + odd @ np.sin(np.float64(angles))
    scores = np.append(0.25 * biases, 0.25 * batch.keys[0][0, -1] @ batch.query[0, 0, 0].double().numpy())
    assert np.abs(np.logaddexp.reduce(scores) - expected[0, 0, 0]) > 1e-3


def with_gains(batch, stored, values):
    """A batch, and gains of its values: bytes (pages, Hkv, page_size) and what they stand for (Hkv, 256)."""
    for b, columns in enumerate(batch.coded):
        places = np.arange(columns.stop - columns.start)
        pages = batch.pages.page_table[b].numpy()[places // batch.pages.page_size]
        own = stored.numpy()[pages, :, places % batch.pages.page_size].T
        batch.values[b][:, columns] *= np.take_along_axis(values.double().numpy(), own.astype(int), 1)[..., None]
    side = replace(batch.pages.values, gains=stored, gain_values=values)
    return replace(batch, pages=replace(batch.pages, values=side))


@pytest.mark.parametrize("kept", ["any", "smallest", "largest"])
@pytest.mark.parametrize("octaves", [6, 14])
@pytest.mark.parametrize("group", [1, 4])
def test_gains_of_many_octaves_lose_nothing_in_fp16(octaves, kept, group, device):
    """A sequence may have all gains of its table, or no others than the smallest or the largest."""
    spec = SMALL.but(context=(3, 65, 200), sinks=None, residual=None, dtype=torch.float16, group=group)
    assert fast_variant(spec.but(gains=True)).gains
    batch = build(spec)
    values = torch.linspace(-octaves, octaves, 256)[None].exp2()
    stored = torch.randint(256, (batch.pages.values.pages.shape[0], 1, 64), generator=torch.Generator().manual_seed(0))
    if kept != "any":
        stored.fill_(0 if kept == "smallest" else 255)
    batch = with_gains(batch, stored.to(torch.uint8), values)
    out, lse = attention(*(moved(part, device) for part in batch.inputs), scale=0.25)
    expected, expected_lse = brute_force(batch, 0.25)
    error = np.abs(out.double().cpu().numpy() - expected) / np.abs(expected).max(-1, keepdims=True)
    assert error.max() <= TOLERANCE[torch.float16]
    np.testing.assert_allclose(lse.double().cpu().numpy(), expected_lse, atol=3e-3)


def test_pages_whose_size_is_no_power_of_two(device):
    check(EXACT.but(page_size=5), device)
    check(SMALL.but(page_size=5), device)
    check(SMALL.but(page_size=24, dtype=torch.float16), device)


def test_several_queries_and_nothing_at_all(device):
    check(SMALL.but(queries=3, residual=(3, 4, 5)), device)
    out, lse = attention(torch.randn(2, 1, 4, 16, device=device), None, None, None, scale=1.0)
    assert out.eq(0).all()
    assert lse.eq(float("-inf")).all()


@pytest.mark.parametrize(("spec", "reason"), [
    (EXACT.but(head_dim=20), "20 elements are no multiple of 8"),
    (SMALL.but(head_dim=20, subspaces=(10, 10)), "20 elements are no multiple of 8"),
], ids=["exact", "codes"])  # fmt: skip
def test_a_step_that_the_kernels_cannot_take_is_not_left_to_another(spec, reason, device):
    inputs = [moved(part, device) for part in build(spec).inputs]
    with pytest.raises(KernelError, match=f"'cuda' cannot take this step: .*{reason}"):
        attention(*inputs, scale=1.0)


def test_pages_in_float64_are_refused(device):
    query, pages, *rest = (moved(part, device) for part in build(EXACT).inputs)
    pages = replace(pages, **{side: replace(getattr(pages, side), pages=getattr(pages, side).pages.double())
                              for side in ("keys", "values")})  # fmt: skip
    with pytest.raises(KernelError, match="cannot take this step: they accumulate in float32"):
        attention(query, pages, *rest, scale=1.0)


def test_the_naive_kernel(device):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        check(ALONE.but(dtype=dtype), device, run=naive.attention)
    check(ALONE, device, run=partial(naive.attention, block=33), window=50)


def test_what_the_naive_kernel_refuses(device):
    for spec, message in ((SMALL, "exact pages alone"), (ALONE.but(queries=2), "one query")):
        with pytest.raises(KernelError, match=message):
            naive.attention(*(moved(part, device) for part in build(spec).inputs), scale=1.0)
    batch = build(ALONE.but(context=(9000,), heads=1, group=1))
    with pytest.raises(KernelError, match="not of 9000"):
        naive.attention(*(moved(part, device) for part in batch.inputs), scale=1.0)


@pytest.mark.parametrize(("field", "value", "message"), [
    ("page_table", 1000, "page_table names pages"), ("context_len", 10_000, "context_len is"),
])  # fmt: skip
def test_ids_and_lengths_out_of_range_are_refused_before_a_launch(field, value, message, device):
    query, pages, sinks, residual = (moved(part, device) for part in build(SMALL).inputs)
    with pytest.raises(KernelError, match=message):
        attention(query, replace(pages, **{field: getattr(pages, field) + value}), sinks, residual, scale=1.0)


@pytest.mark.usefixtures("gpu_only")
@pytest.mark.parametrize("group", [1, 4, 8])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("nbits", [None, 8, 6, 4])
def test_every_length(nbits, dtype, head_dim, group, device):
    layouts = ("row", "row") if nbits is None else ("transposed", "transposed")
    subspaces = (head_dim // 2, head_dim // 2)
    spec = LONG.but(nbits=nbits, dtype=dtype, head_dim=head_dim, group=group, subspaces=subspaces, layouts=layouts)
    check(spec, device, lse_error=1e-5 if nbits is None else None)


@pytest.mark.usefixtures("gpu_only")
@pytest.mark.parametrize("group", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("layouts", [("row", "row"), ("row", "transposed"), ("transposed", "row")])
@pytest.mark.parametrize(("nbits", "M"), [(8, 64), (6, 64), (8, 32), (4, 128), (4, 64)])
def test_every_layout_and_shape(nbits, M, layouts, group, device):
    check(LONG.but(nbits=nbits, subspaces=(M, M), layouts=layouts, group=group, dtype=torch.float16), device)


@pytest.mark.usefixtures("gpu_only")
def test_a_batch_of_the_bench(device):
    check(LONG.but(context=(4096, 100, 5000, 777) * 8, sinks=(4,) * 32, residual=(70,) * 32, group=4,
                   dtype=torch.bfloat16), device)  # fmt: skip
