"""Maxima and sums over the lanes of a warp."""

from numba import int32, uint32

from pqkv.kernels.cuda.device import device_function, exchange

_ALL = 0xFFFFFFFF


@device_function
def warp_max(value):
    """The largest of 32 lanes, in each of them."""
    for halving in range(5):
        value = max(value, exchange(uint32(_ALL), value, int32(1 << halving)))
    return value


@device_function
def warp_sum(value):
    """The sum of 32 lanes, in each of them."""
    for halving in range(5):
        value += exchange(uint32(_ALL), value, int32(1 << halving))
    return value
