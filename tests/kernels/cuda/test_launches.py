"""What a decoding step asks of a GPU: launches of kernels and operations of torch, each a node of a graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build
from served import TURNING

from pqkv.cache.layer import length_tensors
from pqkv.kernels.cuda import backend
from pqkv.kernels.cuda.backend import attention
from pqkv.kernels.types import ExactTokens
from pqkv.speed.launches import Operations, count_launches

SPEC = Spec(
    context=(64, 3), sinks=(1, 4), residual=(2, 3), head_dim=16, heads=1, group=2, subspaces=(8, 8), nbits=4,
    dtype=torch.float16,
)  # fmt: skip


def counted(monkeypatch, *inputs):
    """(operations of torch, launches) of a step whose derived tensors are there already, and its output."""
    attention(*inputs, scale=0.25)
    launches, launch = [], backend.launch
    monkeypatch.setattr(backend, "launch", lambda *given: (launches.append(given[0]), launch(*given)))
    with Operations() as torchs:
        out, _ = attention(*inputs, scale=0.25)
    monkeypatch.undo()
    # what records say is what was asked for here
    assert count_launches(lambda: attention(*inputs, scale=0.25)) == (len(launches), torchs.found)
    return torchs.found, len(launches), out


def as_a_cache_has(spec, device):
    """Inputs whose lengths are one tensor."""
    query, pages, sinks, residual = (part.to(device) for part in build(spec).inputs)
    lengths = [part.tolist() for part in (sinks.length, pages.context_len, residual.length)]
    ours = length_tensors(lengths, device)
    return (
        query,
        replace(pages, context_len=ours[1], trusted=True),
        ExactTokens(sinks.keys, sinks.values, ours[0]),
        ExactTokens(residual.keys, residual.values, ours[2]),
    )


def test_a_step_of_a_cache_is_three_launches_and_nothing_else(device, monkeypatch):
    torchs, launches, out = counted(monkeypatch, *as_a_cache_has(SPEC, device))
    assert torchs == []
    assert launches == 3  # sinks and residual, pages, merge
    expected, _ = brute_force(build(SPEC), 0.25, None)
    torch.testing.assert_close(out.double().cpu(), torch.from_numpy(expected), atol=3e-3, rtol=3e-3)


@pytest.mark.parametrize(("frequencies", "more"), [
    ((), []),  # another query
    (TURNING, []),  # and phasors
    ((0.0, *TURNING), ["index"]),  # and those put into order
], ids=["query", "bias", "bias out of order"])  # fmt: skip
def test_what_codes_meet_costs_no_launch(frequencies, more, device, monkeypatch):
    spec = SPEC.but(turning=frequencies, gains=True, int8=True)
    torchs, launches, out = counted(monkeypatch, *as_a_cache_has(spec, device))
    assert torchs == more
    assert launches == 3
    expected, _ = brute_force(build(spec), 0.25, None)
    torch.testing.assert_close(out.double().cpu(), torch.from_numpy(expected), atol=3e-3, rtol=3e-3)


def test_lengths_that_lie_apart_are_put_together(device, monkeypatch):
    torchs, _, out = counted(monkeypatch, *(part.to(device) for part in build(SPEC).inputs))
    assert "cat" in torchs
    expected, _ = brute_force(build(SPEC), 0.25, None)
    torch.testing.assert_close(out.double().cpu(), torch.from_numpy(expected), atol=3e-3, rtol=3e-3)


def test_neighbours_in_memory_that_are_not_one_tensor_are_not_read_across():
    memory = np.arange(6, dtype=np.int32)
    apart = [torch.from_numpy(memory[i : i + 2]) for i in (0, 2, 4)]  # each its own storage, end to end
    assert backend._together(apart).tolist() == list(range(6))
    assert backend._together(list(torch.from_numpy(memory).view(3, 2))).data_ptr() == memory.ctypes.data
