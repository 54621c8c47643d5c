"""The vector code for exact vectors in every form: run here against float64, and assembled for processors that are not
here.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from batches import Spec, brute_force, build
from exact_modules import Compiled, assembly, loops_of, module_of
from llvmlite.binding import get_host_cpu_features

from pqkv.cpu_path import PATHS, CpuPath
from pqkv.kernels.cpu import held as held_module
from pqkv.kernels.cpu.backend import attention
from pqkv.kernels.cpu.exact_form import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FORMS,
    form_of,
    host_form,
    orders,
    uses_dots,
    width_of,
)

NATIVE = "avx512-bf16"  # has an instruction that another processor has not; its emulation runs anywhere
RUN_HERE = [form for form in FORMS if form != NATIVE]
KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "float16": FLOAT16}
POISON = 20  # rows of NaN behind those that count


def half_bits(numbers):
    """Float32 rounded to bfloat16, as bits."""
    return torch.from_numpy(np.ascontiguousarray(numbers, np.float32)).to(torch.bfloat16).view(torch.uint16).numpy()


def widened(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rows_of(kind, shape, draw):
    """Random rows as they lie, and as numbers."""
    numbers = draw.standard_normal(shape).astype(np.float32)
    if kind == FLOAT32:
        return numbers, numbers.astype(np.float64)
    bits = half_bits(numbers) if kind == BFLOAT16 else numbers.astype(np.float16).view(np.uint16)
    return bits, (widened(bits) if kind == BFLOAT16 else bits.view(np.float16)).astype(np.float64)


def poisoned(rows, kind):
    bad = np.full((POISON, rows.shape[1]), {FLOAT32: np.nan}.get(kind, 0x7FFF), rows.dtype)
    return np.ascontiguousarray(np.concatenate([rows, bad]))


def laid_out(query, order, dots):
    """Queries (G, D) as registers: with `dots` in two planes of bfloat16."""
    filled = np.where(order >= 0, query[:, order.clip(0)], 0).transpose(1, 0, 2)  # (registers, G, lanes)
    if not dots:
        return np.ascontiguousarray(filled, np.float32)
    high = half_bits(filled)
    low = half_bits(filled - widened(high))
    return np.ascontiguousarray(np.stack([high, low], 1))


def needs_conversion(form, kind):
    if FORMS[form].converts and kind == FLOAT16 and not get_host_cpu_features().get("f16c"):
        pytest.skip("this processor has no F16C")


@pytest.mark.parametrize("form", RUN_HERE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("heads", "head_dim"),
    [(4, 128), (1, 128), (2, 64), (3, 96), (8, 64), (5, 80), (6, 256), (7, 16), (16, 32), (20, 8), (4, 77), (1, 3)],
)
def test_scores_and_sums_equal_float64(form, kind, heads, head_dim):
    """Any number of rows, with NaN in those behind; sums go on from what is there."""
    number, shape = KINDS[kind], FORMS[form]
    needs_conversion(form, number)
    draw, dots = np.random.default_rng(heads * head_dim), uses_dots(number, shape)
    code = Compiled(module_of(form, number, head_dim, heads))
    of_keys, of_values = orders(head_dim, number, shape)
    for count in (1, 2, 5, 17, 64):
        rows, exact = rows_of(number, (count, head_dim), draw)
        rows = poisoned(rows, number)
        query = draw.standard_normal((heads, head_dim)).astype(np.float32)
        prepared = laid_out(query, of_keys, dots)
        scores = np.full((count + 16) * heads, 7.0, np.float32)
        code.call("score", scores, prepared, rows, count, rows, head_dim)
        expected = exact @ query.T.astype(np.float64)
        size = np.abs(exact) @ np.abs(query.T)
        bound = 2.0**-15 if dots else head_dim**0.5 * 2.0**-22
        assert (np.abs(scores[: count * heads].reshape(count, heads) - expected) <= bound * size).all()
        assert (scores[(count + 15) * heads :] == 7.0).all()

        weights = draw.random((count, heads)).astype(np.float32)
        before = draw.standard_normal((len(of_values), heads, shape.lanes)).astype(np.float32)
        sums = before.copy()
        given, stride = weights, 1
        if dots:
            given, stride = half_bits(np.concatenate([weights.T, np.full((heads, 1), np.nan)], 1)), count + 1
            weights = widened(given[:, :count]).T
        code.call("add", sums, np.ascontiguousarray(given), stride, rows, count, rows, head_dim)
        out = np.zeros((heads, head_dim))
        out[:, of_values[of_values >= 0]] = (sums - before).transpose(1, 0, 2)[:, of_values >= 0]
        size = np.abs(exact.T) @ weights + 8
        assert (np.abs(out.T - exact.T @ weights.astype(np.float64)) <= count**0.5 * 2.0**-21 * size).all()


@pytest.mark.parametrize("form", [name for name in RUN_HERE if not FORMS[name].converts])
def test_half_precision_without_an_instruction_for_it_is_exact(form):
    """All 65,536 patterns: numbers, also those below the normal ones, infinity and NaN."""
    code = Compiled(module_of(form, FLOAT16, 1, 1))
    (order, _), lanes = orders(1, FLOAT16, FORMS[form]), FORMS[form].lanes
    query = laid_out(np.ones((1, 1), np.float32), order, dots=False)
    bits = np.arange(1 << 16, dtype=np.uint16)[:, None]
    scores = np.empty(len(bits) + lanes + 16, np.float32)
    code.call("score", scores, query, bits, len(bits), bits, 1)
    with np.errstate(invalid="ignore"):
        expected = bits[:, 0].view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(scores[: len(bits)], expected)


@pytest.mark.parametrize(
    ("form", "dtype", "head_dim", "group"),
    [("avx512-bf16 emulated", torch.bfloat16, 80, 4), ("portable", torch.float16, 20, 3)],
)
@pytest.mark.xdist_group("numba")
def test_attention_in_another_form_equals_brute_force(form, dtype, head_dim, group, monkeypatch):
    """Whole steps: ragged, with sinks, residual and a window, pages that are cut in odd places, poison behind."""
    monkeypatch.setattr(held_module, "host_form", lambda: form)
    spec = Spec(
        context=(0, 1, 63, 64, 65, 300, 1500), sinks=(0, 1, 4, 4, 4, 4, 4), residual=(1, 2, 3, 128, 70, 1, 64),
        nbits=None, dtype=dtype, head_dim=head_dim, group=group, page_size=23, unused="poison",
    )  # fmt: skip
    batch = build(spec)
    for window in (None, 70):
        out, lse = attention(*batch.inputs, scale=head_dim**-0.5, window=window)
        expected, expected_lse = brute_force(batch, head_dim**-0.5, window)
        assert np.abs(out.double().numpy() - expected).max() <= 8e-3 * np.abs(expected).max()
        np.testing.assert_allclose(lse.numpy(), expected_lse, atol=3e-5)


@pytest.mark.parametrize("form", [None, "avx512-bf16 emulated"])
@pytest.mark.parametrize(("spread", "tokens"), [(1.0, 64), (1.0, 4096), (8.0, 4096)])
@pytest.mark.xdist_group("numba")
def test_errors_are_at_most_twice_those_of_torch_in_bfloat16(form, spread, tokens, monkeypatch):
    """The same bfloat16 keys and values; scores of standard deviation `spread`; relative to the output's norm."""
    if form is not None:
        monkeypatch.setattr(held_module, "host_form", lambda: form)
    spec = Spec(context=(tokens,), nbits=None, dtype=torch.bfloat16, head_dim=80, group=4, page_size=64, seed=5)
    batch = build(spec)
    scale = spread * 80**-0.5
    expected, _ = brute_force(batch, scale)
    out, _ = attention(*batch.inputs, scale=scale)
    keys, values = (torch.from_numpy(part[0])[None].to(torch.bfloat16) for part in (batch.keys, batch.values))
    grouped = batch.query[:, 0].unflatten(1, (2, 4))  # (1, Hkv, G, D)
    theirs = torch.nn.functional.scaled_dot_product_attention(grouped, keys, values, scale=scale).flatten(1, 2)[:, None]

    def error(found):
        gap = np.linalg.norm(found.double().numpy() - expected, axis=-1)
        return float((gap / np.linalg.norm(expected, axis=-1)).mean())

    assert 0 < error(out) <= 2 * error(theirs)


# processor, form, kind, instructions a product in the inner loops of keys and of values, at most
ASSEMBLED = [
    ("haswell", "avx2", BFLOAT16, 2.2, 2.65),
    ("haswell", "avx2", FLOAT16, 2.4, 2.5),
    ("znver3", "avx2", BFLOAT16, 2.2, 2.65),
    ("znver4", "avx512", BFLOAT16, 1.95, 2.1),
    ("sapphirerapids", "avx512", FLOAT32, 2.0, 2.15),
    ("znver4", "avx512-bf16", BFLOAT16, 1.65, 2.35),
    ("sapphirerapids", "avx512-bf16", BFLOAT16, 1.65, 2.35),
]


@pytest.mark.parametrize(("cpu", "form", "kind", "of_keys", "of_values"), ASSEMBLED)
def test_inner_loops_stay_in_registers_and_are_mostly_products(cpu, form, kind, of_keys, of_values):
    """Head groups of 4. Every loop without another in it; what lies on the stack would name its pointer."""
    text = assembly(module_of(form, kind, 128, 4), cpu)
    dots = uses_dots(kind, FORMS[form])
    product = r"\tvdpbf16ps" if dots else r"\tvfm(add|ul)\d*ps"
    for name, most in (("score", of_keys), ("add", of_values)):
        innermost = [loop for loop in walk(loops_of(text, name)) if not loop.inner and products(loop, product)]
        assert innermost
        assert not [line for loop in innermost for line in loop.own if "(%rsp" in line]
        best = min(innermost, key=lambda loop: len(loop.own) / products(loop, product))
        assert len(best.own) <= most * products(best, product)
    assert bool(re.search("vdpbf16ps", text)) == dots
    assert bool(re.search(r"vcvtph2ps", text)) == (kind == FLOAT16)


def walk(loops):
    for loop in loops:
        yield loop
        yield from walk(loop.inner)


def products(loop, pattern):
    return sum(bool(re.match(pattern, line)) for line in loop.own)


def test_the_form_is_what_the_processor_and_llvm_have():
    wide = dict.fromkeys(("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma", "f16c"), True)
    assert form_of({}, 22) == "portable"
    assert form_of({"avx2": True, "fma": True}, 22) == "portable"
    assert form_of({"avx2": True, "fma": True, "f16c": True}, 22) == "avx2"
    assert form_of(wide, 22) == "avx512"
    assert form_of({**wide, "avx512bw": False}, 22) == "avx2"
    assert form_of({**wide, "avx512bf16": True}, 22) == "avx512-bf16"
    assert form_of({**wide, "avx512bf16": True}, 15) == "avx512"
    assert host_form() == form_of(get_host_cpu_features(), 22)


def test_a_forced_path_leaves_instructions_out():
    wide = dict.fromkeys(("avx512f", "avx512vl", "avx512bw", "avx512dq", "avx512bf16", "avx2", "fma", "f16c"), True)
    forms = {name: form_of(CpuPath(name, "", forced=True).allowed(wide), 22) for name in PATHS}
    narrow = {"portable": "portable", "avx2": "avx2", "vnni": "avx2"}
    assert forms == {"float": "avx512-bf16", **narrow, "avx512": "avx512-bf16"}
    assert form_of(CpuPath("avx2", "the processor has no VBMI").allowed(wide), 22) == "avx512-bf16"
    script = "from pqkv.kernels.cpu.exact_form import host_form; print(host_form())"
    env = {**os.environ, "PQKV_CPU_PATH": "portable"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "portable"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head_dim", [1, 64, 77, 80, 128])
def test_every_element_has_a_lane(form, kind, head_dim):
    for order in orders(head_dim, KINDS[kind], FORMS[form]):
        assert sorted(order[order >= 0]) == list(range(head_dim))
    assert width_of(KINDS[kind], FORMS[form]) % FORMS[form].lanes == 0
