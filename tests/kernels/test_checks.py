"""What no backend takes: each says so with one error before it reads a page."""

from dataclasses import replace

import pytest
import torch
from batches import Spec, build

from pqkv.errors import KernelError
from pqkv.kernels import ExactTokens, backend_names, choose_backend, get_backend

SMALL = Spec(
    context=(0, 1, 63, 300), sinks=(0, 1, 4, 4), residual=(1, 2, 3, 64), subspaces=(32, 16), dtype=torch.float32
)


HERE = [name for name in backend_names() if choose_backend(name, torch.device("cpu"), torch.float32).name == name]


@pytest.fixture(params=HERE)
def attention(request):
    return get_backend(request.param)


def changed(batch, **changes):
    pages = batch.pages
    for name, value in changes.items():
        side = name in ("keys", "values")
        pages = replace(pages, **{name: replace(getattr(pages, name), **value) if side else value})
    return pages


COMPLAINTS = {
    "a page that is not there": (lambda p: {"page_table": p.page_table + 1000}, "page_table names pages"),
    "a length beyond the table": (lambda p: {"context_len": p.context_len + 10_000}, "context_len is"),
    "a negative length": (lambda p: {"context_len": p.context_len - 1}, "context_len is -1"),
    "a table of 64-bit ids": (lambda p: {"page_table": p.page_table.long()}, "page_table is torch.int64"),
    "another page size": (lambda p: {"page_size": 32}, "keys.pages are torch.uint8"),
    "another width": (lambda p: {"keys": {"nbits": 6}}, "6-bit codes of 64 elements need C = 64"),
    "the other layout": (lambda p: {"values": {"layout": "row"}}, "layout row of 16 codes of 8 bits needs"),
    "exact and coded sides": (lambda p: {"keys": {"centroids": None}}, "both be exact or both be coded"),
    "too many heads of centroids": (lambda p: {"keys": {"centroids": p.keys.centroids.repeat(2, 1, 1, 1)}}, "4 heads"),
    "channels of another shape": (
        lambda p: {"keys": {"channels": p.keys.channels[:, :5]}},
        "channels are torch.int64 of shape",
    ),
}


@pytest.mark.parametrize("case", COMPLAINTS)
def test_inputs_that_do_not_fit_are_refused_before_anything_runs(case, attention):
    batch = build(SMALL)
    change, message = COMPLAINTS[case]
    with pytest.raises(KernelError, match=message):
        attention(batch.query, changed(batch, **change(batch.pages)), batch.sinks, batch.residual, scale=1.0)


def test_exact_parts_that_do_not_fit_are_refused(attention):
    batch = build(SMALL)
    r = batch.residual
    for part, message in (
        (ExactTokens(r.keys, r.values[:, :, :5], r.length), "residual have keys"),
        (ExactTokens(r.keys.half(), r.values, r.length), "both need one float dtype"),
        (ExactTokens(r.keys[:, :1], r.values[:, :1], r.length), "all need the same number"),
        (ExactTokens(r.keys, r.values, r.length + 1000), "residual.length is"),
        (ExactTokens(r.keys, r.values, r.length.long()), "not int32"),
    ):
        with pytest.raises(KernelError, match=message):
            attention(batch.query, batch.pages, batch.sinks, part, scale=1.0)
    with pytest.raises(KernelError, match="3 query heads cannot share 2 KV heads"):
        attention(batch.query.repeat(1, 1, 2, 1)[:, :, :3], batch.pages, batch.sinks, r, scale=1.0)


def test_a_query_of_integers_and_an_empty_window_are_refused(attention):
    batch = build(SMALL)
    rest = batch.pages, batch.sinks, batch.residual
    with pytest.raises(KernelError, match=r"query is torch\.int32; it needs a float dtype"):
        attention(batch.query.int(), *rest, scale=1.0)
    for window in (0, -5):
        with pytest.raises(KernelError, match=f"window is {window}"):
            attention(batch.query, *rest, scale=1.0, window=window)


def test_channels_that_name_no_channel_are_refused(attention):
    batch = build(SMALL)
    for wrong in (batch.pages.keys.channels + 1, batch.pages.keys.channels.int()):
        with pytest.raises(KernelError, match="channels"):
            attention(batch.query, changed(batch, keys={"channels": wrong}), batch.sinks, batch.residual, scale=1.0)
