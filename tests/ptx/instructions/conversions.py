"""cvt: from one type to another. Registers may be wider than what is read or written, if that is an integer."""

import numpy as np

from ptx.instructions.table import compute, form
from ptx.scalars import SCALARS

_INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")


def _register_all():
    for target in _INTEGERS:
        for source in _INTEGERS:
            if target != source:
                form(f"cvt.{target}.{source}")(lambda one, t=target, s=source: _integers(one, t, s))
    for source in _INTEGERS:
        for target in ("f32", "f64"):
            form(f"cvt.rn.{target}.{source}")(lambda one, t=target, s=source: _from_integer(one, t, s))
    for target in ("u32", "s32", "u64", "s64"):
        for source in ("f32", "f64"):
            form(f"cvt.rzi.{target}.{source}")(lambda one, t=target, s=source: _to_integer(one, t, s))


def _integers(one, target, source):
    """A wider target register is filled by the target's sign or zeros."""
    one.expect(2)
    write = one.target(one.operands[0], SCALARS[target], wider=True)
    read = one.source(one.operands[1], SCALARS[source], wider=True)
    dtype = SCALARS[target].dtype
    return lambda warp: write(warp, read(warp.registers).astype(dtype))


def _from_integer(one, target, source):
    one.expect(2)
    write = one.target(one.operands[0], SCALARS[target])
    read = one.source(one.operands[1], SCALARS[source], wider=True)
    dtype = SCALARS[target].dtype
    return lambda warp: write(warp, read(warp.registers).astype(dtype))


def _to_integer(one, target, source):
    """Towards zero; what does not fit becomes the nearest that does, NaN becomes 0."""
    dtype = SCALARS[target].dtype
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max

    def convert(value):
        value = np.trunc(value.astype(np.float64))
        found = np.where(np.isnan(value), 0, value)
        inside = (found > low) & (found < high)
        return np.where(inside, np.where(inside, found, 0).astype(dtype), np.where(found > 0, high, low).astype(dtype) *
                        (found != 0).astype(dtype))  # fmt: skip

    return compute(one, target, (source,), convert)


@form("cvt.f32.f16")
def _from_half(one):
    return compute(one, "f32", ("f16",), lambda value: value.astype(np.float32))


@form("cvt.rn.f16.f32")
def _to_half(one):
    return compute(one, "f16", ("f32",), lambda value: value.astype(np.float16))


@form("cvt.rn.f16x2.f32")
def _to_halves(one):
    """The first source comes into the high half."""

    def pack(high, low):
        return np.stack([low, high], -1).astype(np.float16).view(np.uint32).reshape(-1)

    return compute(one, "b32", ("f32", "f32"), pack)


@form("cvt.f64.f32")
def _widened(one):
    return compute(one, "f64", ("f32",), lambda value: value.astype(np.float64))


@form("cvt.rn.f32.f64")
def _narrowed(one):
    return compute(one, "f32", ("f64",), lambda value: value.astype(np.float32))


_register_all()
