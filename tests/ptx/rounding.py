"""Floating point as IEEE 754 and the PTX manual have it, where NumPy has no operation that rounds once."""

import numpy as np

_HALF_WAY = np.int64(1 << 28)  # of the 29 bits that float64 has more than float32
_REST = np.int64((1 << 29) - 1)
_LEAST = 2.0**-126  # normal number of float32


def fma32(a, b, c):
    """a * b + c of float32, rounded once.

    The product is exact in float64. Its sum with c is not, and may come to lie half way between two float32: only
    there, and where float32 has fewer bits, does the second rounding need what the first one lost.
    """
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)
    total = product + addend
    doubtful = ((total.view(np.int64) & _REST) == _HALF_WAY) | (np.abs(total) < _LEAST)
    if doubtful.any():
        total = _rounded_to_odd(product, addend, total)
    return total.astype(np.float32)


def _rounded_to_odd(a, b, total):
    """a + b, of which `total` is the nearest float64: itself if exact, else the neighbour whose last bit is 1."""
    back = total - a
    lost = (a - (total - back)) + (b - back)
    bits = total.view(np.int64)
    outwards = np.where((lost > 0) == (total > 0), np.int64(1), np.int64(-1))
    odd = np.where(bits & 1, bits, bits + outwards).view(np.float64)
    return np.where((lost != 0) & np.isfinite(total) & np.isfinite(lost), odd, total)


def halves(words):
    """uint32 (lanes,) -> float16 (lanes, 2), the low half first."""
    return np.ascontiguousarray(words).view(np.float16).reshape(-1, 2)


def words(pairs):
    """The inverse of `halves`."""
    return np.ascontiguousarray(pairs, np.float16).view(np.uint32).reshape(-1)


def fma16(a, b, c):
    """a * b + c of float16: in float64 a sum is inexact only where the smaller one is far below half a unit."""
    return (a.astype(np.float64) * b + c).astype(np.float16)


def power_of_two(x):
    """2**x of float32, correctly rounded, which is within the 2**-22 that `ex2.approx` promises. Denormal numbers are
    zero, as arguments and as results.
    """
    x = np.where(np.abs(x) < _LEAST, np.float32(0), x)
    found = np.exp2(x.astype(np.float64)).astype(np.float32)
    return np.where(found < _LEAST, np.float32(0), found)


def larger(a, b):
    """max of float32 or float64: a number beats NaN, +0 beats -0."""
    found = np.fmax(a, b)
    zero = (a == 0) & (b == 0)
    return np.where(zero, (a + b) + a.dtype.type(0), found) if zero.any() else found


def smaller(a, b):
    """min, likewise."""
    return -larger(-a, -b)
