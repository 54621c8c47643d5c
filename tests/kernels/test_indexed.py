"""Attention by an index and an offset a token: brute force, every bad index by name, nothing read that is not named."""

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.errors import KernelError
from pqkv.kernels import get_backend
from pqkv.kernels.indexed import indexed_attention


def brute(query, keys, values, indices, offsets, scale, window=None):
    T, Hq, D = query.shape
    n, G = len(indices), Hq // keys.shape[2]
    out, lse = np.zeros((T, Hq, D)), np.zeros((T, Hq))
    for t in range(T):
        last = n - T + t
        seen = range(0 if window is None else max(0, last - window + 1), last + 1)
        for h in range(Hq):
            k, v = (np.stack([side[indices[i], offsets[i], h // G].double().numpy() for i in seen])
                    for side in (keys, values))  # fmt: skip
            s = k @ query[t, h].double().numpy() * scale
            w = np.exp(s - s.max())
            out[t, h], lse[t, h] = w @ v / w.sum(), s.max() + np.log(w.sum())
    return out, lse


def made(n, blocks=9, size=4, kv_heads=2, group=2, D=8, seed=0):
    """Tokens in slots of their own, in any order; every other slot holds NaN."""
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randperm(blocks * size, generator=generator)[:n]
    keys, values = (torch.full((blocks, size, kv_heads, D), float("nan")) for _ in range(2))
    for side in (keys, values):
        side.view(blocks * size, kv_heads, D)[slots] = torch.randn(n, kv_heads, D, generator=generator)
    query = torch.randn(n, kv_heads * group, D, generator=generator)
    return query, keys, values, (slots // size).int(), (slots % size).int()


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.data())
def test_it_is_attention_over_the_slots_that_are_named(n, data):
    rows = data.draw(st.integers(1, n))
    window = data.draw(st.none() | st.integers(1, n + 2))
    query, *rest = made(n, kv_heads=data.draw(st.integers(1, 3)), seed=n)
    out, lse = indexed_attention(query[-rows:], *rest, scale=0.3, window=window)
    right, right_lse = brute(query[-rows:], *rest, 0.3, window)
    np.testing.assert_allclose(out.numpy(), right, atol=2e-6)
    np.testing.assert_allclose(lse.numpy(), right_lse, atol=2e-6)


@pytest.mark.parametrize(("queries", "window"), [(1, None), (1, 40), (5, None), (5, 3)])
def test_as_a_backend_it_serves_pages(queries, window):
    spec = Spec(nbits=None, context=(0, 3, 64, 65, 130), heads=2, group=3, head_dim=16, queries=queries,
                dtype=torch.float32, unused="poison")  # fmt: skip
    batch = build(spec)
    out, lse = get_backend("indexed")(*batch.inputs, scale=0.25, window=window)
    right, right_lse = brute_force(batch, 0.25, window)
    np.testing.assert_allclose(out.double().numpy(), right, atol=3e-6)
    np.testing.assert_allclose(lse.double().numpy(), right_lse, atol=3e-6)


@pytest.mark.parametrize(("change", "message"), [
    (lambda a: a.update(block_indices=a["block_indices"][:-1]), "9 block_indices, 10 block_offsets, 10 query rows"),
    (lambda a: a["block_indices"].__setitem__(3, 9), "block_indices holds 9; there are 0 to 8"),
    (lambda a: a["block_indices"].__setitem__(3, -1), "block_indices holds -1"),
    (lambda a: a["block_offsets"].__setitem__(0, 4), "block_offsets holds 4; there are 0 to 3"),
    (lambda a: a["block_offsets"].__setitem__(0, -2), "block_offsets holds -2"),
    (lambda a: a.update(live=torch.zeros(9, dtype=torch.bool)), "which is not in use"),
    (lambda a: a.update(block_indices=a["block_indices"].long()), "block_indices is torch.int64"),
    (lambda a: a.update(query=a["query"].double()), "all must be float32"),
    (lambda a: a.update(query=a["query"][:, :3]), "3 query heads of 8 do not fit 2 of 8"),
    (lambda a: a.update(values=a["values"][:, :3]), "in the same layout"),
    (lambda a: a.update(query=torch.zeros(11, 4, 8)), "a row is of one of the tokens"),
])  # fmt: skip
def test_what_names_no_slot_is_refused(change, message):
    names = ("query", "keys", "values", "block_indices", "block_offsets")
    given = dict(zip(names, made(10), strict=True))
    change(given)
    with pytest.raises(KernelError, match=message):
        indexed_attention(**given, scale=1.0)


def test_blocks_in_use_pass():
    query, keys, values, indices, offsets = made(10)
    live = torch.zeros(9, dtype=torch.bool)
    live[indices.long()] = True
    out, _ = indexed_attention(query, keys, values, indices, offsets, scale=1.0, live=live)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"nbits": 8}, "exact pages alone"), ({"dtype": torch.float64}, "serves float32")],
)
def test_what_the_backend_does_not_serve_is_refused(change, message):
    batch = build(Spec(nbits=None, context=(3,), dtype=torch.float32).but(**change))
    with pytest.raises(KernelError, match=message):
        get_backend("indexed")(*batch.inputs, scale=1.0)
