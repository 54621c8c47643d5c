"""Functions bound once to what stays and called by address with what changes, on one thread or many."""

import numba
import numpy as np
import pytest
from numba import types
from numba.core.errors import TypingError

from pqkv import parallel
from pqkv.thread_code import bind, bound_size, call_bound, is_last, next_unit

pytestmark = pytest.mark.xdist_group("numba")
WHOLES = types.Array(types.int64, 1, "C")
CHANGING = types.Tuple((WHOLES, types.float64))  # units that were begun and sums, a factor


@numba.njit
def _add(own, numbers, more, room):
    numbers_of, factor = own
    np.empty(room)
    job = next_unit(numbers_of)
    while job < len(numbers):
        numbers[job] += factor * more[1][job] + more[0]
        job = next_unit(numbers_of)


@numba.njit(nogil=True)
def bind_add(changing, numbers, offset, others, room):
    given = numbers, (offset, others), room
    own = np.empty(bound_size(_add, changing, given), np.uint8)
    return bind(_add, changing, given, own), own


@numba.njit(nogil=True)
def call(launch, threads, first, first_room, second, second_room, begun, factor):
    return call_bound(launch, threads, (first, first_room, second, second_room), CHANGING, (begun, factor))


def bound(numbers, offset=0.0, room=1):
    """Two addresses, and what lies there."""
    others = np.arange(len(numbers), dtype=np.float32)
    address, own = bind_add(CHANGING, numbers, offset, others, room)
    return address, own.ctypes.data, (own, numbers, others)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_bound_gets_what_stays_and_what_changes(threads):
    if threads > 1 and not parallel.openmp():
        pytest.skip("torch has no OpenMP with the names of GCC's here")
    numbers = np.zeros(1000)
    *addresses, _kept = bound(numbers, 0.5)
    for factor in (2.0, 3.0):
        assert not call(parallel.openmp(), threads, *addresses, 0, 0, np.zeros(1, np.int64), factor)
    np.testing.assert_array_equal(numbers, 5.0 * np.arange(1000) + 1.0)


def test_two_are_called_in_order_and_none_where_there_is_none():
    first, second = np.zeros(5), np.zeros(7)
    kept = [bound(first), bound(second)]
    addresses = [number for *own, _ in kept for number in own]
    begun = np.zeros(1, np.int64)
    assert not call(0, 1, *addresses, begun, 1.0)  # the first counts to 6, the second goes on from there
    np.testing.assert_array_equal(first, np.arange(5))
    np.testing.assert_array_equal(second, [0] * 6 + [6])
    assert not call(0, 1, 0, 0, 0, 0, begun, 1.0)
    assert not call(0, 1, 0, 0, *addresses[2:], np.zeros(1, np.int64), 1.0)
    np.testing.assert_array_equal(second, [0, 1, 2, 3, 4, 5, 12])


def test_memory_that_is_not_there_is_told_and_the_next_call_works():
    numbers = np.zeros(4)
    wanting, enough = bound(numbers, room=1 << 55), bound(numbers)
    assert call(0, 1, *wanting[:2], 0, 0, np.zeros(1, np.int64), 1.0)
    assert not call(0, 1, *enough[:2], 0, 0, np.zeros(1, np.int64), 1.0)
    np.testing.assert_array_equal(numbers, np.arange(4))


def test_another_type_than_what_was_bound_is_not_compiled():
    with pytest.raises(TypingError, match="is not what was bound"):
        call(0, 1, 0, 0, 0, 0, np.zeros(1, np.int32), 1.0)


@numba.njit
def ends(left, index):
    return is_last(left, index)


def test_the_last_of_several_is_one():
    left = np.array([3, 1])
    assert [ends(left, 0) for _ in range(3)] == [False, False, True]
    assert ends(left, 1)
    np.testing.assert_array_equal(left, 0)
