"""Predicates out of numbers, and a choice by them."""

import numpy as np

from ptx.instructions.table import compute, form
from ptx.scalars import SCALARS

_ORDERED = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_UNSIGNED = {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
_INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
_BITS = ("b16", "b32", "b64")
_FLOATS = ("f32", "f64")


def _unordered(function):
    """True where a or b is NaN too."""
    return lambda a, b: function(a, b) | np.isnan(a) | np.isnan(b)


def _register(name, kind, function):
    form(f"setp.{name}.{kind}")(lambda one: compute(one, "pred", (kind, kind), function))


def _register_all():
    for kind in (*_INTEGERS, *_FLOATS):
        for name, function in _ORDERED.items():
            if kind in _FLOATS and name == "ne":  # false where one is NaN, which NumPy's is not
                _register(name, kind, lambda a, b: (a < b) | (a > b))
            else:
                _register(name, kind, function)
    for kind in _BITS:
        for name in ("eq", "ne"):
            _register(name, kind, _ORDERED[name])
    for kind in ("u16", "u32", "u64"):
        for name, function in _UNSIGNED.items():
            _register(name, kind, function)
    for kind in _FLOATS:
        for name, function in _ORDERED.items():
            _register(f"{name}u", kind, _unordered(function))
        _register("num", kind, lambda a, b: ~(np.isnan(a) | np.isnan(b)))
        _register("nan", kind, lambda a, b: np.isnan(a) | np.isnan(b))
    for kind in (*_INTEGERS, *_BITS, *_FLOATS):
        form(f"selp.{kind}")(lambda one, k=kind: _select(one, k))


def _select(one, kind):
    one.expect(4)
    scalar = SCALARS[kind]
    write = one.target(one.operands[0], scalar)
    a, b = (one.source(operand, scalar) for operand in one.operands[1:3])
    chosen = one.predicate(one.operands[3])
    taken, other, predicate = one.effect.sources
    one.effect.select = taken, other, predicate
    return lambda warp: write(warp, np.where(chosen(warp.registers), a(warp.registers), b(warp.registers)))


_register_all()
