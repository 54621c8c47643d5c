"""Words as bits: logic, shifts, fields, bytes."""

import numpy as np

from ptx.instructions.table import compute, form
from ptx.scalars import SCALARS

_LOGIC = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_WIDTHS = (16, 32, 64)


def _register_all():
    for kind in ("pred", "b16", "b32", "b64"):
        for name, function in _LOGIC.items():
            form(f"{name}.{kind}")(lambda one, k=kind, f=function: compute(one, k, (k, k), f))
        form(f"not.{kind}")(lambda one, k=kind: compute(one, k, (k,), np.invert))
    for bits in _WIDTHS:
        form(f"shl.b{bits}")(lambda one, k=f"b{bits}": compute(one, k, (k, "u32"), _left))
        for kind in (f"u{bits}", f"s{bits}", f"b{bits}"):
            form(f"shr.{kind}")(lambda one, k=kind: compute(one, k, (k, "u32"), _right))
    for kind in ("u32", "u64"):
        form(f"bfe.{kind}")(lambda one, k=kind: compute(one, k, (k, "u32", "u32"), _field))
    for kind in ("b32", "b64"):
        form(f"bfi.{kind}")(lambda one, k=kind: compute(one, k, (k, k, "u32", "u32"), _insert))


def _left(a, count):
    """A count of the width or more leaves zeros."""
    bits = 8 * a.dtype.itemsize
    shifted = a << np.minimum(count, bits - 1).astype(a.dtype)
    return np.where(count >= bits, a.dtype.type(0), shifted) if (count >= bits).any() else shifted


def _right(a, count):
    """A count of the width or more leaves zeros, or the sign."""
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(count, bits - 1).astype(a.dtype)
    if a.dtype.kind == "u" and (count >= bits).any():
        return np.where(count >= bits, a.dtype.type(0), shifted)
    return shifted


def _field(a, start, length):
    """`length` bits from `start` on, the lowest byte of each counts."""
    start, length = start & np.uint32(255), length & np.uint32(255)
    return _right(a, start) & _ones(a, length)


def _insert(field, word, start, length):
    """The lowest `length` bits of `field` in place of those of `word` from `start` on."""
    start, length = start & np.uint32(255), length & np.uint32(255)
    ones = _left(_ones(word, length), start)
    return (word & ~ones) | (_left(field, start) & ones)


def _ones(like, length):
    """The lowest `length` bits set."""
    one = like.dtype.type(1)
    return np.where(length >= 8 * like.dtype.itemsize, ~like.dtype.type(0), _left(np.ones_like(like), length) - one)


@form("shf.r.wrap.b32")
def _funnel_right(one):
    return compute(one, "b32", ("b32", "b32", "u32"), lambda low, high, count: _funnel(low, high, count & 31))


@form("shf.l.wrap.b32")
def _funnel_left(one):
    return compute(one, "b32", ("b32", "b32", "u32"), lambda low, high, count: _funnel(low, high, 32 - (count & 31)))


def _funnel(low, high, count):
    both = (high.astype(np.uint64) << np.uint64(32)) | low
    return (both >> count.astype(np.uint64)).astype(np.uint32)


@form("prmt.b32")
def _permute(one):
    return compute(one, "b32", ("b32", "b32", "b32"), _bytes)


def _bytes(a, b, selector):
    """Byte i is that of b:a which nibble i names; with its highest bit set, that one's sign eight times."""
    all_bytes = np.stack([a, b], -1).view(np.uint8)  # (lanes, 8), the bytes of a first
    nibbles = (selector[:, None] >> np.arange(0, 16, 4, dtype=np.uint32)) & np.uint32(15)
    chosen = np.take_along_axis(all_bytes, (nibbles & 7).astype(np.int64), 1)
    signs = np.where(chosen & 0x80, np.uint8(0xFF), np.uint8(0))
    return np.ascontiguousarray(np.where(nibbles & 8, signs, chosen)).view(SCALARS["b32"].stored).reshape(-1)


_register_all()
