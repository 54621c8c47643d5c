"""Integer instructions, written by hand, against Python's integers."""

import numpy as np
import pytest

from ptx.written import evaluate

EDGES = {32: [0, 1, 2, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF],
         64: [0, 1, 3, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 2]}  # fmt: skip


def pairs(bits):
    """All pairs of edges, in warps of 32."""
    a, b = np.meshgrid(np.array(EDGES[bits], f"u{bits // 8}"), np.array(EDGES[bits], f"u{bits // 8}"))
    return a.reshape(-1), b.reshape(-1)


def signed(value, bits):
    return value - (1 << bits) if value >> (bits - 1) else value


def meaning(kind, value):
    """A register as a number."""
    return signed(value, int(kind[1:])) if kind[0] == "s" else value


def toward_zero(a, b):
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


TWO = {
    "add": lambda a, b, bits: a + b, "sub": lambda a, b, bits: a - b, "mul.lo": lambda a, b, bits: a * b,
    "mul.hi": lambda a, b, bits: (a * b) >> bits, "min": lambda a, b, bits: min(a, b),
    "max": lambda a, b, bits: max(a, b), "div": lambda a, b, bits: toward_zero(a, b),
    "rem": lambda a, b, bits: a - b * toward_zero(a, b),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", TWO)
def test_arithmetic_of_two(name, kind):
    bits = int(kind[1:])
    a, b = pairs(bits)
    if name in ("div", "rem"):
        a, b = a[b != 0], b[b != 0]
    found = evaluate(f"{name}.{kind} {{0}}, {{1}}, {{2}}", a, b, result=f"b{bits}", threads=len(a))
    for x, y, z in zip(a.tolist(), b.tolist(), found.tolist(), strict=True):
        assert z == TWO[name](meaning(kind, x), meaning(kind, y), bits) % (1 << bits), (x, y)


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_a_wide_product_has_all_bits(kind):
    a, b = pairs(32)
    found = evaluate(f"mul.wide.{kind} {{0}}, {{1}}, {{2}}", a, b, result="b64", threads=len(a))
    expected = [meaning(kind, x) * meaning(kind, y) % (1 << 64) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert found.tolist() == expected


def test_multiply_and_add():
    a, b = pairs(32)
    wide = evaluate("mad.wide.s32 {0}, {1}, {2}, -7", a, b, result="b64", threads=len(a))
    products = [signed(x, 32) * signed(y, 32) - 7 for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert wide.tolist() == [one % (1 << 64) for one in products]
    found = evaluate("mad.lo.s32 {0}, {1}, {2}, {1}", a, b, threads=len(a))
    assert found.tolist() == [(x * y + x) % (1 << 32) for x, y in zip(a.tolist(), b.tolist(), strict=True)]


COUNTS = np.array([0, 1, 5, 31, 32, 33, 63, 64, 200, 0xFFFFFFFF], np.uint32)


@pytest.mark.parametrize(("form", "bits"), [("shl.b32", 32), ("shl.b64", 64), ("shr.u32", 32), ("shr.u64", 64),
                                            ("shr.s32", 32), ("shr.s64", 64)])  # fmt: skip
def test_shifts_past_the_width_leave_nothing_but_the_sign(form, bits):
    value = 0x9234567890ABCDEF >> (64 - bits)
    found = evaluate(f"{form} {{0}}, {{1}}, {{2}}", np.full(len(COUNTS), value, f"u{bits // 8}"), COUNTS,
                     result=f"b{bits}", threads=len(COUNTS))  # fmt: skip
    for count, one in zip(COUNTS.tolist(), found.tolist(), strict=True):
        if form.startswith("shl"):
            expected = value << min(count, bits)
        else:
            expected = (signed(value, bits) if ".s" in form else value) >> min(count, bits)
        assert one == expected % (1 << bits), count


@pytest.mark.parametrize(("form", "expected"), [
    ("and.b32", 0x12300000 & 0xFFFF0F00), ("or.b32", 0xFFFF0F00 | 0x12300000), ("xor.b32", 0xFFFF0F00 ^ 0x12300000),
])  # fmt: skip
def test_logic(form, expected):
    assert (evaluate(f"{form} {{0}}, {{1}}, {{2}}", np.uint32(0x12300000), np.uint32(0xFFFF0F00)) == expected).all()


def test_not_and_negation():
    assert (evaluate("not.b64 {0}, {1}", np.uint64(5), result="b64") == (1 << 64) - 6).all()
    assert (evaluate("neg.s64 {0}, {1}", np.uint64(5), result="b64") == (1 << 64) - 5).all()


@pytest.mark.parametrize(("selector", "expected"), [
    (0x3210, 0x44332291), (0x7654, 0xDDCCBBAA), (0x4440, 0xAAAAAA91), (0x4443, 0xAAAAAA44), (0x0123, 0x91223344),
    (0x8888, 0xFFFFFFFF), (0x9999, 0x00000000), (0xC543, 0xFFBBAA44),
])  # fmt: skip
def test_permuted_bytes(selector, expected):
    """Bytes 0 to 3 are of the first word, 4 to 7 of the second; the highest bit of a nibble asks for the sign."""
    a, b = np.uint32(0x44332291), np.uint32(0xDDCCBBAA)
    assert (evaluate("prmt.b32 {0}, {1}, {2}, " + hex(selector), a, b) == expected).all()


@pytest.mark.parametrize(("count", "expected"), [(0, 0x89ABCDEF), (4, 0x789ABCDE), (31, 0x02468ACF), (36, 0x789ABCDE)])
def test_a_funnel_shift_wraps_its_count(count, expected):
    low, high = np.uint32(0x89ABCDEF), np.uint32(0x01234567)
    both = (0x0123456789ABCDEF >> (count % 32)) & 0xFFFFFFFF
    assert both == expected
    assert (evaluate("shf.r.wrap.b32 {0}, {1}, {2}, {3}", low, high, np.uint32(count)) == expected).all()


def test_a_field():
    assert (evaluate("bfe.u32 {0}, {1}, 4, 8", np.uint32(0x12345678)) == 0x67).all()
    assert (evaluate("bfe.u32 {0}, {1}, 24, 32", np.uint32(0x12345678)) == 0x12).all()


def test_a_field_put_in():
    """Field, word, first bit, bits; what hangs over the end is lost."""
    assert (evaluate("bfi.b32 {0}, {1}, {2}, 8, 12", np.uint32(0xFFFABC), np.uint32(0x12345678)) == 0x123ABC78).all()
    found = evaluate("bfi.b64 {0}, {1}, {2}, 8, 56", np.uint64(0x123456789ABCDEF0), np.uint64(0x42), result="b64")
    assert (found == 0x3456789ABCDEF042).all()
    assert (evaluate("bfi.b32 {0}, {1}, {2}, 28, 8", np.uint32(0xAB), np.uint32(0)) == 0xB0000000).all()
    assert (evaluate("bfi.b32 {0}, {1}, {2}, 4, 0", np.uint32(0xAB), np.uint32(7)) == 7).all()


@pytest.mark.parametrize(("form", "given", "result", "expected"), [
    ("cvt.s64.s32", np.uint32(0x80000000), "b64", 0xFFFFFFFF80000000),
    ("cvt.u64.u32", np.uint32(0x80000000), "b64", 1 << 31),
    ("cvt.u32.u64", np.uint64(0x123456789ABCDEF0), "b32", 0x9ABCDEF0),
    ("cvt.u16.u32", np.uint32(0x12348765), "b16", 0x8765),
    ("cvt.s32.s16", np.uint16(0x8765), "b32", 0xFFFF8765), ("cvt.u32.u16", np.uint16(0x8765), "b32", 0x8765),
    ("cvt.s32.s8", np.uint32(0x12345680), "b32", 0xFFFFFF80), ("cvt.u16.u8", np.uint32(0x12345680), "b16", 0x80),
])  # fmt: skip
def test_integers_of_another_width(form, given, result, expected):
    assert (evaluate(f"{form} {{0}}, {{1}}", given, result=result) == expected).all()


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons_and_the_choice_they_make(name, kind):
    bits = int(kind[1:])
    a, b = pairs(bits)
    ask = f"setp.{name}.{kind} %p0, {{1}}, {{2}}; selp.b32 {{0}}, 11, 22, %p0"
    found = evaluate(ask, a, b, threads=len(a))
    compare = {"eq": "__eq__", "ne": "__ne__", "lt": "__lt__", "le": "__le__", "gt": "__gt__", "ge": "__ge__"}[name]
    expected = [
        11 if getattr(meaning(kind, x), compare)(meaning(kind, y)) else 22
        for x, y in zip(a.tolist(), b.tolist(), strict=True)
    ]
    assert found.tolist() == expected


def test_predicates_are_combined():
    ask = (
        "setp.gt.u32 %p0, {1}, 7; setp.lt.u32 %p1, {1}, 20; and.pred %p2, %p0, %p1; or.pred %p3, %p0, %p1; "
        "xor.pred %p4, %p2, %p3; not.pred %p4, %p4; selp.u32 {0}, 1, 0, %p4"
    )
    found = evaluate(ask, np.arange(32, dtype=np.uint32))
    assert found.tolist() == [int(7 < i < 20) for i in range(32)]  # of the rest one holds, and the other does not


def test_halves_of_a_word_apart_and_together():
    ask = "{{ .reg .b16 l, h; mov.b32 {{l, h}}, {1}; mov.b32 {0}, {{h, l}}; }}"
    assert (evaluate(ask, np.uint32(0x12345678)) == 0x56781234).all()
