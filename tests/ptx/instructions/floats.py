"""Floating-point arithmetic, each rounded once."""

import numpy as np

from ptx import rounding
from ptx.instructions.table import compute, form

_SIMPLE = {"add": np.add, "sub": np.subtract, "mul": np.multiply}


def _register_all():
    for name, function in _SIMPLE.items():
        for opcode in (f"{name}.f32", f"{name}.rn.f32"):
            form(opcode)(lambda one, f=function: compute(one, "f32", ("f32", "f32"), f))
        for opcode in (f"{name}.f64", f"{name}.rn.f64"):
            form(opcode)(lambda one, f=function: compute(one, "f64", ("f64", "f64"), f))
        form(f"{name}.rn.f16x2")(lambda one, f=function: compute(one, "b32", ("b32", "b32"), _packed(f)))
    for name, function in (("min", rounding.smaller), ("max", rounding.larger)):
        for kind in ("f32", "f64"):
            form(f"{name}.{kind}")(lambda one, k=kind, f=function: compute(one, k, (k, k), f))
    for name, function in (("neg", np.negative), ("abs", np.abs)):
        for kind in ("f32", "f64"):
            form(f"{name}.{kind}")(lambda one, k=kind, f=function: compute(one, k, (k,), f))


def _packed(function):
    """On both halves of words. float32 holds sums and products of float16 so exactly that the one rounding is that to
    float16.
    """
    return lambda a, b: rounding.words(
        function(rounding.halves(a).astype(np.float64), rounding.halves(b)).astype(np.float16)
    )


@form("fma.rn.f32")
def _fma(one):
    return compute(one, "f32", ("f32", "f32", "f32"), rounding.fma32)


@form("fma.rn.f16x2")
def _fma_halves(one):
    def both(a, b, c):
        return rounding.words(rounding.fma16(rounding.halves(a), rounding.halves(b), rounding.halves(c)))

    return compute(one, "b32", ("b32", "b32", "b32"), both)


@form("div.rn.f32")
def _divide(one):
    return compute(one, "f32", ("f32", "f32"), np.divide)


@form("div.rn.f64")
def _divide_doubles(one):
    return compute(one, "f64", ("f64", "f64"), np.divide)


@form("rcp.rn.f32")
def _reciprocal(one):
    return compute(one, "f32", ("f32",), lambda value: np.float32(1) / value)


@form("sqrt.rn.f32")
def _root(one):
    return compute(one, "f32", ("f32",), np.sqrt)


@form("ex2.approx.ftz.f32")
def _power(one):
    return compute(one, "f32", ("f32",), rounding.power_of_two)


_register_all()
