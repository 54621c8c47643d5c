"""Integer arithmetic: wraps around, as registers do."""

import numpy as np

from ptx.faults import PtxFault
from ptx.instructions.table import compute, form
from ptx.scalars import SCALARS

_INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
_SIMPLE = {"add": np.add, "sub": np.subtract, "mul.lo": np.multiply, "min": np.minimum, "max": np.maximum}
_SIGNED = {"neg": np.negative, "abs": np.abs}


def _register_all():
    for kind in _INTEGERS:
        for name, function in _SIMPLE.items():
            form(f"{name}.{kind}")(lambda one, k=kind, f=function: compute(one, k, (k, k), f))
        form(f"mad.lo.{kind}")(lambda one, k=kind: compute(one, k, (k, k, k), lambda a, b, c: a * b + c))
        form(f"div.{kind}")(lambda one, k=kind: _division(one, k, _quotient))
        form(f"rem.{kind}")(lambda one, k=kind: _division(one, k, _remainder))
        if kind[0] == "s":
            for name, function in _SIGNED.items():
                form(f"{name}.{kind}")(lambda one, k=kind, f=function: compute(one, k, (k,), f))
        if kind[1:] != "64":
            wide = f"{kind[0]}{2 * int(kind[1:])}"
            form(f"mul.wide.{kind}")(lambda one, k=kind, w=wide: compute(one, w, (k, k), _wide(w)))
            form(f"mad.wide.{kind}")(lambda one, k=kind, w=wide: compute(one, w, (k, k, w), _wide_sum(w)))
            form(f"mul.hi.{kind}")(lambda one, k=kind, w=wide: compute(one, k, (k, k), _high(k, w)))
        else:
            form(f"mul.hi.{kind}")(lambda one, k=kind: compute(one, k, (k, k), _high_of_64))


def _wide(name):
    dtype = SCALARS[name].dtype
    return lambda a, b: a.astype(dtype) * b


def _wide_sum(name):
    product = _wide(name)
    return lambda a, b, c: product(a, b) + c


def _high_of_64(a, b):
    """The upper 64 of 128 bits, by products of 32-bit halves."""
    low = np.uint64(0xFFFFFFFF)
    x, y = a.view(np.uint64), b.view(np.uint64)
    x0, x1, y0, y1 = x & low, x >> np.uint64(32), y & low, y >> np.uint64(32)
    middle = x1 * y0 + (x0 * y0 >> np.uint64(32))
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> np.uint64(32)) + (other >> np.uint64(32))
    if a.dtype.kind == "u":
        return high
    # as signed numbers each factor below zero is 2**64 less than its bits say
    return (high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))).view(a.dtype)


def _high(name, wide):
    dtype, product, shift = SCALARS[name].dtype, _wide(wide), SCALARS[name].bits
    return lambda a, b: (product(a, b) >> shift).astype(dtype)


def _quotient(a, b):
    """Towards zero, as C has it and NumPy has not."""
    floor = a // b
    return floor + ((a % b != 0) & ((a < 0) != (b < 0))).astype(a.dtype)


def _remainder(a, b):
    return a - _quotient(a, b) * b


def _division(one, name, function):
    one.expect(3)
    scalar = SCALARS[name]
    write = one.target(one.operands[0], scalar)
    a, b = (one.source(operand, scalar) for operand in one.operands[1:])

    def run(warp):
        divisor = b(warp.registers)
        zero = divisor == 0
        if zero.any():
            if (zero & warp.mask).any():
                raise PtxFault("a division by zero")
            divisor = np.where(zero, divisor.dtype.type(1), divisor)
        write(warp, function(a(warp.registers), divisor))

    return run


_register_all()
