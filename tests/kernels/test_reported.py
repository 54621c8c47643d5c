"""The incremental decoder of the report: values, copies as they happen, state when a step fails."""

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build
from hypothesis import given, settings
from hypothesis import strategies as st

from pqkv.cache import StaticStore
from pqkv.errors import CacheError, KernelError
from pqkv.kernels import get_backend
from pqkv.kernels.reported.decoder import ResidentLayer, RoundTripLayer
from pqkv.kernels.reported.memory import DeviceMemory, Transfers

ALONE = Spec(nbits=None, context=(0, 1, 31, 64, 65, 130), heads=2, group=3, head_dim=64, dtype=torch.float32,
             unused="poison")  # fmt: skip
NAMES = ("one-warp", "all-rows", "round-trip")


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("name", NAMES)
def test_they_say_what_attention_is(name, window):
    batch = build(ALONE)
    out, lse = get_backend(name)(*batch.inputs, scale=64**-0.5, window=window)
    right, right_lse = brute_force(batch, 64**-0.5, window)
    np.testing.assert_allclose(out.double().numpy(), right, atol=2e-6)
    np.testing.assert_allclose(lse.double().numpy(), right_lse, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [({"nbits": 8}, "exact pages alone"), ({"dtype": torch.float64}, "serves float32"),
     ({"sinks": (1,) * 6}, "exact pages alone")],
)  # fmt: skip
def test_what_they_do_not_serve_is_refused(name, change, message):
    batch = build(ALONE.but(**change))
    with pytest.raises(KernelError, match=message):
        get_backend(name)(*batch.inputs, scale=0.125)


def test_several_queries_are_another_backends(name="one-warp"):
    batch = build(ALONE.but(queries=3, context=(3, 64, 70)))
    out, _ = get_backend(name)(*batch.inputs, scale=64**-0.5)
    np.testing.assert_allclose(out.double().numpy(), brute_force(batch, 64**-0.5)[0], atol=3e-6)


def decoded(layer, steps, heads, kv_heads, D, seed=0):
    """Outputs of `steps` steps, and of float64 attention."""
    generator = torch.Generator().manual_seed(seed)
    keys, values, outs, rights = [], [], [], []
    for _ in range(steps):
        q, k, v = (torch.randn(n * D, generator=generator) for n in (heads, kv_heads, kv_heads))
        outs.append(layer.step(q, k, v))
        keys.append(k.double().view(kv_heads, D))
        values.append(v.double().view(kv_heads, D))
        K, V = (torch.stack(side, 1).repeat_interleave(heads // kv_heads, 0) for side in (keys, values))
        scores = torch.einsum("hd,hnd->hn", q.double().view(heads, D), K) / D**0.5
        rights.append(torch.einsum("hn,hnd->hd", scores.softmax(-1), V).flatten())
    return torch.stack(outs).double(), torch.stack(rights)


@pytest.mark.parametrize("kind", [ResidentLayer, RoundTripLayer])
def test_steps_agree_with_float64_on_both_sides_of_the_branch(kind):
    memory, D = DeviceMemory(), 8
    heads, kv_heads = (4, 4) if kind is RoundTripLayer else (4, 2)
    layer = kind(memory, heads, D, 20) if kind is RoundTripLayer else kind(memory, heads, kv_heads, D, 20)
    with Transfers(memory):
        out, right = decoded(layer, 20, heads, kv_heads, D)
        with pytest.raises(KernelError, match="overflow: max_len=20, trying to add position 21"):
            layer.step(*(torch.zeros(n * D) for n in (heads, kv_heads, kv_heads)))
    assert torch.allclose(out, right, atol=1e-6)
    assert layer.length == 20


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.sampled_from([4, 8]), st.integers(1, 12))
def test_copies_are_those_that_happened(kv_heads, group, D, length):
    """Counted by what passes between host and device; the formulas are written down here and nowhere else."""
    heads = kv_heads * group
    memory = DeviceMemory()
    layer = ResidentLayer(memory, heads, kv_heads, D, 12)
    with Transfers(memory):
        decoded(layer, length, heads, kv_heads, D)
    t = memory.traffic
    assert (t.up_copies, t.down_copies) == (length * (2 * kv_heads + 1), length)
    assert (t.up_bytes, t.down_bytes) == (4 * length * (2 * kv_heads + heads) * D, 4 * length * heads * D)
    assert (t.launches, t.synchronizations, t.allocations) == (length, length, 2 + 2 * length)

    memory = DeviceMemory()
    layer = RoundTripLayer(memory, heads, D, 12)
    with Transfers(memory):
        decoded(layer, length, heads, heads, D)
    rows = [n for n in range(1, length + 1) if n >= D]
    t, read = memory.traffic, sum(range(1, length + 1))
    assert t.up_bytes == 4 * heads * D * (2 * length + 3 * sum(rows))
    assert t.down_bytes == 4 * heads * D * (2 * read + sum(rows))
    assert (t.up_copies, t.down_copies) == (2 * heads * length + 3 * len(rows), 2 * heads * length + len(rows))
    assert t.launches == len(rows)


def test_the_host_cannot_touch_memory_of_the_device_but_by_copies():
    memory = DeviceMemory()
    buffer = memory.empty(4, 8)
    with Transfers(memory):
        view = buffer[1, 2:5]
        with pytest.raises(KernelError, match="on the host reads memory of the device"):
            view + 1
        with pytest.raises(KernelError, match="on the host"):
            view.fill_(1)
        with pytest.raises(KernelError, match="given memory of the host, of shape"):
            memory.launch(lambda x: x, torch.zeros(3))
        view.copy_(torch.ones(3))
    assert (memory.traffic.up_copies, memory.traffic.up_bytes) == (1, 12)
    assert buffer[1, 2:5].eq(1).all()
    memory.free(buffer)
    assert not memory.holds(view)


def test_a_step_that_fails_after_its_length_grew_leaves_its_token_twice():
    memory, D = DeviceMemory(), 4
    layer = ResidentLayer(memory, 2, 1, D, 8)
    q, k, v = torch.ones(8), torch.ones(4), torch.ones(4)
    with Transfers(memory):
        layer.step(q, k, v)
        memory.fail_launch = True
        with pytest.raises(KernelError, match="as it was told to"):
            layer.step(q, 2 * k, 2 * v)
        layer.step(q, 2 * k, 2 * v)
    assert layer.length == 3  # of two tokens
    assert layer.keys[0, :3, 0].tolist() == [1, 2, 2]


def test_a_copy_that_fails_before_the_length_grew_leaves_nothing():
    memory, D = DeviceMemory(), 4
    layer = ResidentLayer(memory, 2, 1, D, 8)
    q, k, v = torch.ones(8), torch.ones(4), torch.ones(4)
    with Transfers(memory):
        memory.fail_copy = 1  # the key is there, the value is not
        with pytest.raises(KernelError, match="the copy failed"):
            layer.step(q, k, v)
        assert layer.length == 0
        layer.step(q, 3 * k, 3 * v)
    assert layer.length == 1
    assert layer.keys[0, 0, 0] == layer.values[0, 0, 0] == 3


def test_kv_heads_of_their_own_are_refused_by_the_round_trip():
    layer = RoundTripLayer(DeviceMemory(), 8, 4, 6)
    with pytest.raises(KernelError, match=r"expected 32, got key\[8\]"):
        layer.step(torch.zeros(32), torch.zeros(8), torch.zeros(8))


def test_a_static_store_changes_nothing_when_it_is_full():
    store = StaticStore(2, 5, 4)
    store.append(torch.ones(2, 3, 4), torch.ones(2, 3, 4))
    before = store.keys.clone(), store.values.clone()
    with pytest.raises(CacheError, match=r"3 tokens of 5 are in the store: 3 more do not fit; nothing was written"):
        store.append(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4))
    for keys, values in ((torch.zeros(1, 1, 4), torch.zeros(2, 1, 4)), (torch.zeros(2, 1, 4), torch.zeros(2, 2, 4))):
        with pytest.raises(CacheError):
            store.append(keys, values)
    assert store.length == 3
    assert np.array_equal(before[0].numpy(), store.keys.numpy(), equal_nan=True)
    assert np.array_equal(before[1].numpy(), store.values.numpy(), equal_nan=True)
    store.append(torch.zeros(2, 2, 4), torch.zeros(2, 2, 4))
    assert store.length == store.max_len
    store.crop(1)
    assert store.length == 1
    with pytest.raises(CacheError, match="cannot keep 2 of 1"):
        store.crop(2)
    assert store.nbytes == 2 * 2 * 5 * 4 * 4


@pytest.mark.parametrize("name", ["cpu", "reference", *NAMES])
def test_backends_read_a_static_store_and_nothing_past_its_length(name):
    generator = torch.Generator().manual_seed(0)
    store = StaticStore(2, 100, 16)
    store.keys.fill_(float("nan"))
    store.values.fill_(float("nan"))
    keys, values = (torch.randn(2, 37, 16, generator=generator) for _ in range(2))
    store.append(keys, values)
    query = torch.randn(1, 1, 4, 16, generator=generator)
    out, _ = get_backend(name)(query, store.tokens(), None, None, scale=0.25)
    K, V = (side.double().repeat_interleave(2, 0) for side in (keys, values))
    weights = (torch.einsum("hd,hnd->hn", query[0, 0].double(), K) * 0.25).softmax(-1)
    assert torch.allclose(out[0, 0].double(), torch.einsum("hn,hnd->hd", weights, V), atol=1e-6)
