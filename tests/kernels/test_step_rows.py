"""What a step does to a few rows in one call: a token into its slot, rows times a Hadamard matrix."""

import numpy as np
import pytest
import torch

from pqkv.codec.transforms import hadamard
from pqkv.kernels.cpu.hadamard import serves_rows, turned_rows
from pqkv.kernels.cpu.slots import SlotWriter

pytestmark = pytest.mark.xdist_group("numba")  # one process compiles the kernels, not each its own
HEADS, DIM = 3, 20


@pytest.mark.parametrize("size", [8, 16, 24, 64, 80, 96, 128, 256, 512])
def test_rows_are_turned_as_the_matrix_turns_them(size):
    torch.manual_seed(size)
    rows = torch.randn(2, 3, 1, size)
    assert serves_rows(rows)
    expected = rows.double() @ hadamard(size)
    torch.testing.assert_close(turned_rows(rows).double(), expected, rtol=0, atol=4e-6)
    strided = torch.randn(2, size, 3).transpose(1, 2)
    torch.testing.assert_close(turned_rows(strided).double(), strided.double() @ hadamard(size), rtol=0, atol=4e-6)
    assert torch.equal(turned_rows(rows)[1:], turned_rows(rows[1:])), "a row depends on how many there are"


def test_rows_that_a_product_turns_better_are_left_to_it():
    assert not serves_rows(torch.zeros(1, 4))
    assert not serves_rows(torch.zeros(1, 84))  # blocks of 4
    assert not serves_rows(torch.zeros(1, 1024))
    assert not serves_rows(torch.zeros(1, 64, dtype=torch.float64))
    assert not serves_rows(torch.zeros(1024, 64))


def buffers(dtype, capacities=(2, 5), batch=3):
    return [[torch.zeros(batch, HEADS, n, DIM, dtype=dtype) for _ in range(2)] for n in capacities]


def tokens(dtype, strided, batch=3):
    draw = torch.Generator().manual_seed(1)
    shape = (batch, 1, HEADS, DIM) if strided else (batch, HEADS, 1, DIM)
    parts = [torch.randn(shape, generator=draw).to(dtype) for _ in range(2)]
    return [part.transpose(1, 2) for part in parts] if strided else parts


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_token_lies_in_its_slot_and_nowhere_else(dtype, strided):
    own, new = buffers(dtype), tokens(dtype, strided)
    slots = [1, -1, -1], [-1, 4, -1]  # the third sequence has padding
    assert SlotWriter(*own).write(*new, *slots)
    expected = buffers(dtype)
    for pair, places in zip(expected, slots, strict=True):
        for buffer, part in zip(pair, new, strict=True):
            for b, slot in enumerate(places):
                if slot >= 0:
                    buffer[b, :, slot] = part[b, :, 0]
    assert all(torch.equal(a, b) for x, y in zip(own, expected, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nothing_is_written_of_a_step_with_a_number_that_is_none(dtype, value):
    for side in range(2):
        for b in range(3):
            own, new = buffers(dtype), tokens(dtype, strided=False)
            new[side][b, HEADS - 1, 0, DIM - 1] = value
            slots = [1, -1, -1], [-1, 4, -1]
            written = SlotWriter(*own).write(*new, *slots)
            assert written == (b == 2), "padding may hold anything, tokens may not"
            if not written:
                assert not any(buffer.any() for pair in own for buffer in pair)


def test_the_largest_numbers_are_finite():
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        own, new = buffers(dtype), tokens(dtype, strided=False)
        new[0][:] = torch.finfo(dtype).max
        new[1][:] = -torch.finfo(dtype).tiny
        assert SlotWriter(*own).write(*new, [0, 0, 0], [-1, -1, -1])
    assert np.isfinite(own[0][0].numpy()).all()
