"""Floating-point instructions, written by hand, against exact fractions rounded once."""

import math
from fractions import Fraction

import numpy as np
import pytest

from ptx.written import evaluate

DRAW = np.random.default_rng(7)


def nearest(exact, dtype):
    """The Fraction rounded to nearest, ties to even, by search among neighbours."""
    guess = dtype(float(exact))  # twice rounded: right or a neighbour of what is right
    near = [np.nextafter(guess, dtype(-np.inf)), guess, np.nextafter(guess, dtype(np.inf))]
    bits = np.uint16 if dtype is np.float16 else np.uint32
    return min(
        (one for one in near if np.isfinite(one)),
        key=lambda one: (abs(Fraction(float(one)) - exact), int(one.view(bits)) & 1),
    )


def exact_fma(a, b, c, dtype):
    return nearest(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)), dtype)


def test_a_float32_fma_rounds_once():
    """Some 500 products and sums that come close to half way between two numbers, where float64 rounds first."""
    n = 512
    a = (1 + DRAW.integers(0, 1 << 23, n) * 2.0**-23).astype(np.float32)
    b = (1 + DRAW.integers(0, 1 << 23, n) * 2.0**-23).astype(np.float32)
    c = (DRAW.choice([-1, 1], n) * 2.0 ** DRAW.integers(-60, 40, n)).astype(np.float32)
    # products exactly half way between two numbers, where a number lost in float64 decides
    a[:4] = [1 + 2.0**-12, 1 + 2.0**-12, 1 + 2.0**-23, 1 + 2.0**-23]
    b[:4] = [1 + 2.0**-12, 1 + 2.0**-12, 1.5, 1.5]
    c[:4] = np.array([2.0**-70, -(2.0**-70), 2.0**-80, -(2.0**-80)], np.float32)
    found = evaluate("fma.rn.f32 {0}, {1}, {2}, {3}", a, b, c, result="f32", threads=n)
    twice = (a.astype(np.float64) * b + c).astype(np.float32)
    expected = np.array([exact_fma(*one, np.float32) for one in zip(a, b, c, strict=True)])
    np.testing.assert_array_equal(found, expected)
    assert (twice != expected).any()  # or the case would not tell once from twice


def test_a_float32_fma_rounds_once_where_numbers_are_denormal():
    n = 256
    a = (DRAW.uniform(1, 2, n) * 2.0**-70).astype(np.float32)
    b = (DRAW.uniform(1, 2, n) * 2.0**-70).astype(np.float32)
    c = (DRAW.integers(1, 1 << 10, n) * 2.0**-149).astype(np.float32)
    found = evaluate("fma.rn.f32 {0}, {1}, {2}, {3}", a, b, c, result="f32", threads=n)
    expected = np.array([exact_fma(*one, np.float32) for one in zip(a, b, c, strict=True)])
    np.testing.assert_array_equal(found, expected)


def test_a_float32_fma_of_infinities_and_nan():
    a, b, c = np.array([[np.inf, 1, 1], [np.inf, 0, 1], [3e38, 3e38, -np.inf], [3e38, 3e38, 1], [np.nan, 1, 1],
                        [0, 5, -0.0]], np.float32).T  # fmt: skip
    found = evaluate("fma.rn.f32 {0}, {1}, {2}, {3}", a, b, c, result="f32", threads=6)
    np.testing.assert_array_equal(found, np.array([np.inf, np.nan, -np.inf, np.inf, np.nan, 0], np.float32))


def packed(low, high):
    return np.stack([low, high], -1).astype(np.float16).view(np.uint32).reshape(-1)


@pytest.mark.parametrize("form", ["fma.rn.f16x2", "add.rn.f16x2", "mul.rn.f16x2"])
def test_both_halves_are_rounded_once(form):
    n = 128
    sides = [(DRAW.standard_normal((2, n)) * 2.0 ** DRAW.integers(-12, 6, (2, n))).astype(np.float16) for _ in range(3)]
    a, b, c = sides
    count = 3 if form.startswith("fma") else 2
    words = [packed(*side) for side in sides[:count]]
    names = ", ".join(f"{{{i + 1}}}" for i in range(count))
    found = evaluate(f"{form} {{0}}, {names}", *words, threads=n).view(np.float16).reshape(-1, 2)
    for half in range(2):
        for i in range(n):
            x, y, z = (Fraction(float(side[half, i])) for side in (a, b, c))
            exact = {"fma": x * y + z, "add": x + y, "mul": x * y}[form[:3]]
            assert found[i, half] == nearest(exact, np.float16)


def test_a_half_fma_is_no_product_rounded_and_then_a_sum():
    one, up = np.float16(1), np.float16(1 + 2.0**-10)
    found = evaluate("fma.rn.f16x2 {0}, {1}, {2}, {3}", packed([up], [up]), packed([up], [up]), packed([-one], [-one]))
    assert (found.view(np.float16) == np.float16(2.0**-9 + 2.0**-20)).all()
    assert np.float16(up * up) - one == np.float16(2.0**-9)


def test_the_first_source_of_a_packed_conversion_comes_into_the_high_half():
    found = evaluate("cvt.rn.f16x2.f32 {0}, {1}, {2}", np.float32(1), np.float32(-2))
    assert (found == 0x3C00C000).all()
    ties = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 65519, 65520, 2.0**-25, 2.0**-25 + 2.0**-40], np.float32)
    found = evaluate("cvt.rn.f16x2.f32 {0}, {1}, {1}", ties, threads=len(ties)).view(np.float16)[::2]
    np.testing.assert_array_equal(found, np.array([1, 1 + 2.0**-9, 65504, np.inf, 0, 2.0**-24], np.float16))


def test_a_half_becomes_float32_as_it_is():
    every = np.arange(1 << 10, dtype=np.uint16) * 64
    found = evaluate("cvt.f32.f16 {0}, {1}", every, result="f32", threads=len(every))
    expected = [math.ldexp((h & 1023) + (1024 if h >> 10 & 31 else 0), max(h >> 10 & 31, 1) - 25) * (-1) ** (h >> 15)
                for h in every.tolist()]  # fmt: skip
    finite = (every >> 10 & 31) != 31
    np.testing.assert_array_equal(found[finite], np.array(expected, np.float32)[finite])
    assert not np.isfinite(found[~finite]).any()


def test_a_power_of_two_is_within_its_bound():
    x = np.concatenate([DRAW.uniform(-126, 128, 2000), DRAW.uniform(-1e-3, 1e-3, 48)]).astype(np.float32)
    found = evaluate("ex2.approx.ftz.f32 {0}, {1}", x, result="f32", threads=1024 * 2)
    exact = np.exp2(x.astype(np.longdouble))
    assert (np.abs(found - exact) <= 2.0**-22 * exact).all()


def test_powers_of_two_at_the_edges():
    x = np.array([0, -0.0, 1, -126, -127, -1e30, 128, np.inf, -np.inf, np.nan, 1e-40], np.float32)
    found = evaluate("ex2.approx.ftz.f32 {0}, {1}", x, result="f32", threads=len(x))
    expected = np.array([1, 1, 2, 2.0**-126, 0, 0, np.inf, np.inf, 0, np.nan, 1], np.float32)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("form", "expected"), [("max.f32", [2, 2, 3, 0.0, np.nan]), ("min.f32", [1, 2, 3, -0.0, np.nan])]
)
def test_a_number_beats_nan_and_zeros_have_an_order(form, expected):
    a = np.array([1, np.nan, 3, 0.0, np.nan], np.float32)
    b = np.array([2, 2, np.nan, -0.0, np.nan], np.float32)
    for x, y in ((a, b), (b, a)):
        found = evaluate(f"{form} {{0}}, {{1}}, {{2}}", x, y, result="f32", threads=5)
        np.testing.assert_array_equal(found, np.array(expected, np.float32))
        assert np.signbit(found[3]) == (form == "min.f32")


@pytest.mark.parametrize(("name", "with_nan"), [
    ("eq", False), ("ne", False), ("lt", False), ("le", False), ("gt", False), ("ge", False), ("neu", True),
    ("ltu", True), ("equ", True), ("num", False), ("nan", True),
])  # fmt: skip
def test_comparisons_with_nan(name, with_nan):
    ask = f"setp.{name}.f32 %p0, {{1}}, {{2}}; selp.b32 {{0}}, 1, 0, %p0"
    assert (evaluate(ask, np.float32(np.nan), np.float32(1)) == int(with_nan)).all()


def test_division_rounds_once_and_numbers_become_floats():
    assert (evaluate("div.rn.f32 {0}, {1}, {2}", np.float32(1), np.float32(3), result="f32") == np.float32(1 / 3)).all()
    x = (DRAW.uniform(1, 2, 64) * 2.0 ** DRAW.integers(-60, 60, 64)).astype(np.float32)
    found = evaluate("rcp.rn.f32 {0}, {1}", x, result="f32", threads=64)
    assert found.tolist() == [float(nearest(1 / Fraction(float(one)), np.float32)) for one in x]
    found = evaluate("cvt.rn.f32.s32 {0}, {1}", np.array([0xFFFFFFFF, 16777217, 16777219], np.uint32), result="f32",
                     threads=3)  # fmt: skip
    np.testing.assert_array_equal(found, np.array([-1, 16777216, 16777220], np.float32))


def test_constants_are_written_by_their_bits():
    assert (evaluate("mov.f32 {0}, 0fC0200000", result="f32") == -2.5).all()
