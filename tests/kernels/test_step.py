"""A decoding step as one compiled call: numbers of every kind, threads of either kind, and what is refused."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build

from pqkv import parallel
from pqkv.compiled import compiled
from pqkv.errors import KernelError
from pqkv.kernels.cpu import decode as decode_module
from pqkv.kernels.cpu.backend import attention
from pqkv.kernels.cpu.held import bound, recall
from pqkv.thread_code import bind, bound_size

pytestmark = pytest.mark.xdist_group("numba")  # one process compiles the kernels, not each its own
SMALL = Spec((700, 3), (2, 2), (5, 1), dtype=torch.float32, heads=2, group=2, head_dim=16, subspaces=(8, 8))
PAGES = {"codes": {}, "bytes": {"nbits": 8, "int8": True}, "exact": {"nbits": None}}
AS_IT_IS = ("auto", "auto"), False, 2  # ways, rounded, planes


@pytest.fixture
def threads():
    """Sets torch's number of threads."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(params=PAGES)
def batch(request):
    made = build(SMALL.but(**PAGES[request.param]))
    return replace(made, pages=replace(made.pages, trusted=True))


def close(batch, result, atol=1e-4, **how):
    expected, expected_lse = brute_force(batch, 0.25, **how)
    np.testing.assert_allclose(result[0].double().numpy(), expected, rtol=0, atol=atol)
    np.testing.assert_allclose(result[1].numpy(), expected_lse, rtol=0, atol=atol)


def test_outputs_in_bfloat16_are_those_of_float32_rounded(batch):
    halves = batch.query.bfloat16()
    wide, wide_lse = attention(halves.float(), *batch.inputs[1:], scale=0.25)
    found, lse = attention(halves, *batch.inputs[1:], scale=0.25)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wide.bfloat16())
    assert torch.equal(lse, wide_lse)


def test_what_is_no_number_stays_none_in_bfloat16(batch):
    batch.residual.values[1, :, 0, 3] = torch.nan
    batch.residual.values[1, :, 0, 4] = torch.inf
    found, _ = attention(batch.query.bfloat16(), *batch.inputs[1:], scale=0.25)
    assert found[1, :, :, 3].isnan().all()
    assert found[1, :, :, 4].isinf().all()
    assert found[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_queries_may_lie_apart(batch, dtype):
    query = batch.query.to(dtype)
    apart = torch.stack([query, query], -1)[..., 0]
    assert not apart.is_contiguous()
    once, again = (attention(each, *batch.inputs[1:], scale=0.25) for each in (query, apart))
    assert once[0].dtype == again[0].dtype == dtype
    assert torch.equal(once[0], again[0])
    close(batch, attention(apart.float(), *batch.inputs[1:], scale=0.25), atol=2e-2)


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("stretches", [1, 5])
def test_threads_of_either_kind_and_number_give_the_same_bits(batch, stretches, window, monkeypatch, threads):
    """Who ends a unit last merges: the order of what is merged is not that of the threads."""
    attention(*batch.inputs, scale=0.25)
    held = recall(*batch.inputs, *AS_IT_IS)
    held.numbers = (*held.numbers[:-2], 1e9, 1e9)  # as if there were work enough for all threads
    results = []
    for count, address in ((1, parallel.openmp()), (2, parallel.openmp()), (4, parallel.openmp()), (3, 0)):
        threads(count)
        with monkeypatch.context() as changed:
            changed.setattr(parallel._TEAM, "address", address)
            given = {"scale": 0.25, "window": window, "stretches": stretches}
            results += [decode_module.decode(*batch.inputs, **given) for _ in range(20)]
    assert all(torch.equal(a, b) for other in results for a, b in zip(results[0], other, strict=True))
    close(batch, results[0], window=window)


def test_a_step_that_is_found_again_refuses_what_is_wrong(batch):
    attention(*batch.inputs, scale=0.25)
    query, pages, sinks, residual = batch.inputs
    assert recall(*batch.inputs, *AS_IT_IS) is not None
    wrong = [
        (replace(pages, context_len=pages.context_len + 900), sinks, residual, None, "room for 0 to"),
        (replace(pages, context_len=pages.context_len - 900), sinks, residual, None, "room for 0 to"),
        (replace(pages, context_len=pages.context_len[:1]), sinks, residual, None, "not int32"),
        (pages, replace(sinks, length=sinks.length + 9), residual, None, "room for 0 to"),
        (pages, sinks, replace(residual, length=residual.length.long()), None, "not int32"),
        (pages, sinks, replace(residual, length=residual.length[:, None]), None, "not int32"),
        (pages, sinks, residual, 0, "window is 0"),
    ]
    for pages_, sinks_, residual_, window, words in wrong:
        with pytest.raises(KernelError, match=words):
            attention(query, pages_, sinks_, residual_, scale=0.25, window=window)
    close(batch, attention(*batch.inputs, scale=0.25))


def test_lengths_that_do_not_lie_in_a_row_are_read_where_they_lie(batch):
    def apart(length):
        return torch.stack([length, length + 1000], 1)[:, 0]

    given = [replace(part, length=apart(part.length)) for part in (batch.sinks, batch.residual)]
    pages = replace(batch.pages, context_len=apart(batch.pages.context_len))
    close(batch, attention(batch.query, pages, *given, scale=0.25))


def test_memory_that_is_missing_is_an_error(batch, monkeypatch, threads):
    """A kernel that finds none says so, on OpenMP's threads or Python's, and the next step works."""
    attention(*batch.inputs, scale=0.25)
    held = recall(*batch.inputs, *AS_IT_IS)
    held.numbers = (*held.numbers[:-2], 1e9, 1e9)
    kept = held.exact_call
    for address in (parallel.openmp(), 0):
        threads(3)
        with monkeypatch.context() as changed:
            changed.setattr(parallel._TEAM, "address", address)
            held.exact_call = bound(bind_wanting, 1 << 55)
            with pytest.raises(MemoryError, match="no memory"):
                attention(*batch.inputs, scale=0.25)
            held.exact_call = kept
            close(batch, attention(*batch.inputs, scale=0.25))


@compiled()
def _want(now, room):
    np.empty(room)


@compiled(nogil=True)
def bind_wanting(changing, room):
    given = (room,)
    own = np.empty(bound_size(_want, changing, given), np.uint8)
    return bind(_want, changing, given, own), own


def test_what_begin_step_makes_is_what_kernels_read(batch):
    """Each field by its name: they share types."""
    step = decode_module.step_of(*batch.inputs, scale=0.25, window=100, stretches=3)
    now, (B, _, Hq, D) = step.now, batch.query.shape
    np.testing.assert_array_equal(now.lengths, [batch.sinks.length, batch.pages.context_len, batch.residual.length])
    total = now.lengths.sum(0)
    seen = np.minimum(100, total)
    np.testing.assert_array_equal((now.lengths - now.starts).sum(0), seen)
    assert (now.starts[0] == np.minimum(now.lengths[0], total - seen)).all()
    np.testing.assert_allclose(now.query, batch.query[:, 0].numpy() * 0.25 * np.log2(np.e), rtol=1e-6)
    np.testing.assert_array_equal(now.table, batch.pages.page_table)
    assert now.result.ctypes.data == step.begun.out.data_ptr()
    assert now.lse.ctypes.data == step.begun.lse.data_ptr()
    assert now.out.shape == (B, 2, 4, Hq // 2, D)
    assert (now.taken == 0).all()
    assert (now.left == 4).all()


def test_what_is_bound_keeps_what_it_reads(batch):
    attention(*batch.inputs, scale=0.25)
    held = recall(*batch.inputs, *AS_IT_IS)

    def places(bound_call):
        return {part.ctypes.data for part in bound_call.kept if isinstance(part, np.ndarray)}

    exact = batch.sinks.keys, batch.sinks.values, batch.residual.keys, batch.residual.values
    assert {tensor.data_ptr() for tensor in exact} | {held.exact_call.place} <= places(held.exact_call)
    of_pages = held.page_call(decode_module.NO_TURNS)
    sides = batch.pages.keys.pages, batch.pages.values.pages
    assert {tensor.data_ptr() for tensor in sides} | {of_pages.place} <= places(of_pages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_but_attention_reads_what_is_still_there(batch, dtype, monkeypatch):
    """What addresses are of lives until the call has ended, also what was made for it."""
    alive = []

    def seen(launch, *numbers):
        others = [torch.full(batch.query.shape, 7.0) for _ in range(8)]  # lie where there is nothing else
        alive.append(ctypes.c_float.from_address(numbers[-11]).value)
        del others
        return taken(launch, *numbers)

    taken = decode_module.take_step
    monkeypatch.setattr(decode_module, "take_step", seen)
    decode_module.without_attention(batch.query.to(dtype), *batch.inputs[1:], scale=0.25)
    assert alive == [float(batch.query.to(dtype)[0, 0, 0, 0])]


def test_several_queries_are_no_step(batch):
    query = torch.cat([batch.query, batch.query], 1)
    with pytest.raises(KernelError, match="one query a sequence, not 2"):
        decode_module.decode(query, *batch.inputs[1:], scale=0.25)


@pytest.mark.parametrize("wrong", ["type", "rows"])
def test_a_trusted_table_of_another_kind_is_refused(batch, wrong):
    attention(*batch.inputs, scale=0.25)
    table = batch.pages.page_table
    pages = replace(batch.pages, page_table=table.long() if wrong == "type" else table[:1])
    with pytest.raises(KernelError, match="page_table is"):
        attention(batch.query, pages, *batch.inputs[2:], scale=0.25)
