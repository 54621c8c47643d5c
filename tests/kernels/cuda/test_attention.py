"""Backends `cuda` and `cuda-naive` on poisoned batches against brute force in float64.

Small cases run under the simulator too; those that name `gpu_only` are the full list of lengths and shapes.
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build

from pqkv.errors import KernelError
from pqkv.kernels.cuda import backend, naive
from pqkv.kernels.cuda.backend import attention
from pqkv.kernels.cuda.coded import CodedVariant
from pqkv.kernels.cuda.exact import ExactVariant
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
@pytest.mark.parametrize("spec", [EXACT, SMALL, SMALL.but(dtype=torch.float16)], ids=["exact", "plain", "coded"])
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


@pytest.mark.parametrize("window", [1, 5, 50])
@pytest.mark.parametrize("spec", [EXACT, SMALL, SMALL.but(dtype=torch.float16)], ids=["exact", "plain", "coded"])
def test_a_sliding_window_hides_what_is_older(spec, window, device):
    check(spec, device, window=window)


@pytest.mark.parametrize("spec", [EXACT, SMALL, SMALL.but(dtype=torch.float16)], ids=["exact", "plain", "coded"])
def test_unused_memory_changes_no_bit(spec, device):
    clean, *dirty = (
        attention(*(moved(p, device) for p in build(spec.but(unused=u)).inputs), scale=0.2)
        for u in ("zero", "poison", "garbage")
    )
    for other in dirty:
        assert torch.equal(clean[0], other[0])
        assert torch.equal(clean[1], other[1])


@pytest.mark.parametrize("spec", [EXACT, SMALL, SMALL.but(dtype=torch.float16)], ids=["exact", "plain", "coded"])
def test_splits_change_nothing_but_rounding(spec, device, monkeypatch):
    monkeypatch.setattr(backend, "choose_splits", lambda units, tokens, multiprocessors, **rule: 3)
    check(spec, device)


@pytest.mark.parametrize("spec", [EXACT, SMALL, SMALL.but(dtype=torch.float16)], ids=["exact", "plain", "coded"])
def test_a_query_that_is_not_a_number_is_not_hidden(spec, device):
    query, *rest = build(spec).inputs
    query = query.clone()
    query[2, 0, 1, 3] = float("nan")
    out, lse = attention(*(moved(part, device) for part in (query, *rest)), scale=0.2)
    assert not torch.isfinite(out[2, 0, 1]).any()
    assert not torch.isfinite(lse[2, 0, 1]).any()
    assert torch.isfinite(out[2, 0, 0]).all()


def test_pages_whose_size_is_no_power_of_two(device):
    check(EXACT.but(page_size=5), device)
    check(SMALL.but(page_size=5), device)
    check(SMALL.but(page_size=24, dtype=torch.float16), device)


def test_several_queries_and_nothing_at_all(device):
    check(SMALL.but(queries=3, residual=(3, 4, 5)), device)
    out, lse = attention(torch.randn(2, 1, 4, 16, device=device), None, None, None, scale=1.0)
    assert out.eq(0).all()
    assert lse.eq(float("-inf")).all()


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
