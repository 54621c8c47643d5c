"""Figures in prose of what an H200 said: codes and recipe pqkv beside exact attention, blocks that kernels ask for."""

import re
from dataclasses import replace

import pytest
from prose import numbers, script, text_of

from pqkv.config import BenchConfig
from pqkv.kernels.cuda.bounds import launch_bounds
from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.kernels.cuda.compile import compile_coded, compile_exact
from pqkv.kernels.cuda.exact import ExactVariant, fitting
from pqkv.kernels.cuda.plain import PlainVariant
from pqkv.kernels.cuda.splits import choose_splits
from pqkv.record import load_records
from pqkv.speed.static import GPUS, examine, predict

TEXT, README, LOG = map(text_of, ("experiments/gpu/README.md", "docs/how-to/speed.md", "experiments/LOG.md"))


@pytest.fixture(scope="module")
def tables():
    return script("experiments/gpu/tables.py")


@pytest.fixture(scope="module")
def on_h100(tables):
    """Records by cell and bits."""
    return tables.by_cell(load_records(tables.FOLDER / "bench"))


@pytest.fixture(scope="module")
def on_h200(tables):
    """Records by cell and bits, of product codes alone and of all of recipe pqkv."""
    found = load_records(tables.FOLDER / "bench-h200")
    assert {(r.env["gpus"][0]["name"], r.git["commit"][:7], r.git["dirty"]) for r in found} == {
        ("NVIDIA H200", "3e16c82", False)
    }
    assert len(found) == 28
    return [tables.by_cell([r for r in found if ("served" in r.config) == served]) for served in (False, True)]


def test_codes_on_an_h200(on_h200, on_h100):
    codes, _ = on_h200
    times, before = (
        {cell: {bits: r.metrics["speedup"].value for bits, r in of.items()} for cell, of in records.items()}
        for records in (codes, on_h100)
    )
    large, grouped, alone = (times[cell] for cell in ((32, 32, 8, 32768), (32, 8, 8, 32768), (32, 8, 1, 131072)))
    both = [round(of[32, 32, 8, 32768][bits], 1) for of in (times, before) for bits in (4, 2)]
    told = r"are ([\d.]+) times \(4 bits\) and ([\d.]+) times \(2 bits\) as .* the H100 said ([\d.]+) and ([\d.]+\d)"
    assert numbers(TEXT, told) == both
    told = r"([\d.]+) and ([\d.]+) times \(4 and 2 bits, 32 KV heads.*\) where an H100 said ([\d.]+) and ([\d.]+);"
    assert numbers(LOG, told) == both
    halves = [round(grouped[bits], 2) for bits in (4, 2)]
    assert numbers(TEXT, r"win in that batch \((\d\.\d+) and (\d\.\d+) times\)") == halves
    assert numbers(LOG, r"said 2.6 and 3.3; with 8 KV heads (\d\.\d+) and (\d\.\d+)") == halves
    assert numbers(TEXT, r"with 2 bits alone \((\d\.\d+)\)") == [round(alone[2], 2)]
    assert [cell for cell, of in times.items() if cell[1] == 8 and max(of.values()) > 1] == [
        (32, 8, 1, 131072), (32, 8, 8, 32768),
    ]  # fmt: skip
    assert alone[4] < 1
    told = r"exact attention is faster too, it is ([\d.]+) and ([\d.]+) times, and ([\d.]+) and ([\d.]+);"
    assert numbers(README, told) == [round(of[bits], 1) for of in (large, grouped) for bits in (4, 2)]


def test_times_of_an_h200_beside_those_of_an_h100(on_h200, on_h100):
    def ratios(name, cells, every_bits):
        return [
            on_h200[0][cell][bits].metrics[name].value / on_h100[cell][bits].metrics[name].value
            for cell in cells
            for bits in every_bits
        ]

    long = [cell for cell in on_h200[0] if cell[3] >= 32768]
    exact = ratios("exact_latency_ms", long, (4,))
    assert numbers(TEXT, r"exact attention takes (\d\.\d+) to (\d\.\d+) of an H100's time") == [
        round(min(exact), 2), round(max(exact), 2),
    ]  # fmt: skip
    bandwidths = [GPUS[name].hbm_gbs for name in ("h100", "h200")]
    assert numbers(TEXT, r"two memories \(([\d,]+) and ([\d,]+) GB/s, (\d\.\d+)\)") == [
        *bandwidths, round(bandwidths[0] / bandwidths[1], 2),
    ]  # fmt: skip
    assert numbers(LOG, r"exact attention has (\d\.\d+) times the bandwidth") == [
        round(bandwidths[1] / bandwidths[0], 2)
    ]
    steps = ratios("latency_ms", [cell for cell in long if cell[2] == 8], (4, 2))
    assert numbers(TEXT, r"a batch of 8 a step takes (\d\.\d+) to (\d\.\d+) of the H100's") == [
        round(min(steps), 2), round(max(steps), 2),
    ]  # fmt: skip


def test_recipe_pqkv_on_an_h200(on_h200):
    codes, recipe = on_h200
    assert codes.keys() == recipe.keys()
    times = {(*cell[1:], bits): r.metrics["speedup"].value for cell, of in recipe.items() for bits, r in of.items()}
    few, many = ([value for cell, value in times.items() if cell[0] == heads] for heads in (8, 32))
    span = [round(min(few), 2), round(max(few), 2)]
    assert max(few) < 1
    assert numbers(TEXT, r"4 bits and 2 bits at (\d\.\d+) to (\d\.\d+) of its speed") == span
    assert (len(few), len(many), sum(value > 1 for value in many)) == (10, 4, 3)
    assert numbers(LOG, r"ten cells \((\d\.\d+) to (\d\.\d+)\), and wins three of four with 32, by (\d\.\d+) at") == [
        *span, round(max(many), 2),
    ]  # fmt: skip
    assert numbers(
        TEXT,
        r"(\d\.\d+) times at 4 bits and (\d\.\d+) at 2 in a batch of 8, and (\d\.\d+) at 2 bits of one sequence",
    ) == [round(times[cell], 2) for cell in ((32, 8, 32768, 4), (32, 8, 32768, 2), (32, 1, 32768, 2))]
    assert numbers(README, r"whole (\d\.\d+) and (\d\.\d+) times with 32 KV heads") == [
        round(times[32, 8, 32768, bits], 1) for bits in (4, 2)
    ]
    assert numbers(README, r"with 8 \((\d\.\d+) at 4 bits, (\d\.\d+) at 2\)") == [
        round(times[8, 8, 32768, bits], 2) for bits in (4, 2)
    ]
    longer = [
        recipe[cell][bits].metrics["latency_ms"].value / codes[cell][bits].metrics["latency_ms"].value
        for cell in codes
        for bits in (4, 2)
    ]
    assert numbers(LOG, r"a step takes (\d\.\d+) to (\d\.\d+) times as long with it") == [
        round(min(longer), 2), round(max(longer), 2),
    ]  # fmt: skip


def test_tests_that_passed_on_an_h200(tables):
    head, *lines = (tables.FOLDER / "tests-h200.log").read_text().splitlines()
    assert head.startswith("# NVIDIA H200") and "commit 3e16c82" in head
    dots = "".join(line.partition("[")[0].strip() for line in lines)
    assert set(dots) == {"."}  # neither F nor E nor s
    assert lines[-1].endswith("[100%]")
    assert (
        numbers(TEXT, r"All (\d+) tests of today's kernels")
        == numbers(LOG, r"\*\*(\d+) tests of the kernels passed")
        == [len(dots)]
    )


def measured_bounds(tables):
    """(variant, blocks where nothing is asked, rows that ask) of each kernel of the check `launch_bounds`."""
    (record,) = load_records(tables.FOLDER / "checks")
    assert (record.env["gpus"][0]["name"], record.git["dirty"]) == ("NVIDIA H200", False)
    for alone, asking in tables.of_kernels(record.tables["launch_bounds"]):
        group = alone["heads"] // 8
        if alone["codes"]:
            subspaces, nbits = map(int, re.findall(r"\d+", alone["codes"]))
            codes = Codes(subspaces, nbits, 128 // subspaces, "transposed")
            variant = (coded_variant if alone["kernel"] == "coded" else PlainVariant)(group, codes, codes)
        else:
            variant = fitting(ExactVariant(alone["dtype"], 128, group))
        yield variant, alone["blocks"], asking


def test_blocks_are_asked_for_where_it_pays(tables):
    """Where the interval says so, and as many as took the least time; nowhere else."""
    paid = 0
    for variant, _, asking in measured_bounds(tables):
        best = min(asking, key=lambda row: row["times"])
        pays = best["high"] < 0.99
        assert launch_bounds(variant, (9, 0)) == ((variant.block, best["blocks"]) if pays else None)
        paid += pays
    assert paid == 2


def test_what_asking_for_blocks_does(tables):
    rows = list(measured_bounds(tables))
    coded, plain, four, two, exact, eight = rows
    (half, _), (five,) = exact[2], four[2]
    assert numbers(TEXT, r"takes ([\d.]+) of the time with four blocks, and the one of 4 bits ([\d.]+);") == [
        round(half["times"], 2), round(five["times"], 3),
    ]  # fmt: skip
    assert numbers(LOG, r"A block more makes exact pages ([\d.]+) times as fast") == [round(1 / half["times"], 2)]
    told = r"\(([\d.]+) of the step's time with 4 blocks in place of (\d)\) and the kernel of 4 bits \(([\d.]+)\)"
    assert numbers(LOG, told) == [round(half["times"], 2), exact[1], round(five["times"], 3)]
    assert sum(len(asking) for _, _, asking in rows) == 9
    assert all(row["low"] > 1 for row in (*coded[2], *plain[2]))  # the two that had lost a block
    assert two[2][0]["low"] < 1 < two[2][0]["high"]
    assert all(row["low"] > 1.8 for row in eight[2])
    assert numbers(LOG, r"the plain kernel, ([\d.]+) times as slow here") == [round(plain[2][0]["times"], 2)]
    blocks = 64 * choose_splits(64, 32768, 132)
    told = r"exact pages are (\d+) blocks, of which 132 multiprocessors run (\d+) with three each, while (\d+) wait"
    assert numbers(TEXT, told) == [blocks, 3 * 132, blocks - 3 * 132]
    told = r": (\d+) blocks of exact pages, and (\d+) places with three blocks a multiprocessor, (\d+) with four"
    assert numbers(LOG, told) == [blocks, 3 * 132, 4 * 132]


@pytest.mark.slow
def test_eight_heads_in_one_block_or_in_two(tables):
    eight, four = (fitting(ExactVariant("float16", 128, group)) for group in (8, 4))
    config, gpu = BenchConfig(heads=64, kv_heads=8, head_dim=128, dtype="float16"), GPUS["h200"]
    one, two = examine(eight, gpu), examine(four, gpu)
    places = [gpu.multiprocessors * kernel.occupancy.blocks for kernel in (one, two)]
    blocks = [units * choose_splits(units, 32768, gpu.multiprocessors) for units in (64, 128)]
    assert numbers(LOG, r"have (\d+) registers a thread, so two blocks a multi") == [one.report.registers]
    fewer = [compile_exact(replace(eight, tokens=tokens), (9, 0)).report.registers for tokens in (1, 2)]
    assert numbers(LOG, r"\((\d+) registers with one, (\d+) with two, in place of four\)") == fewer
    assert numbers(LOG, r"queries and sums are (\d+) of them") == [2 * 8 * eight.own]
    told = r"would have (\d+) registers and their (\d+) blocks run at once, where (\d+) take (\d+) places"
    assert numbers(LOG, told) == [two.report.registers, blocks[1], blocks[0], places[0]]
    assert blocks[1] <= places[1]
    assert numbers(LOG, r"model (\d+) microseconds in place of (\d+) on an H200") == [
        round(1e3 * predict(config, kernel, gpu, 8, 32768)) for kernel in (two, one)
    ]
    *_, (_, _, (asked, _)), _ = measured_bounds(tables)
    (record,) = load_records(tables.FOLDER / "checks")
    alone, _ = tables.of_kernels(record.tables["launch_bounds"])[-1]
    assert numbers(LOG, r"twice the ([\d.]+) that four heads take is more than the ([\d.]+) of eight") == [
        round(asked["step_us"], 1), round(alone["step_us"], 1),
    ]  # fmt: skip
    assert 2 * asked["step_us"] > alone["step_us"]


@pytest.mark.slow
def test_what_the_assembler_makes_of_what_is_asked():
    """Registers and spills of kernels that a GPU has not timed, and of those that took too much."""

    def report(variant, blocks):
        compile_one = compile_exact if isinstance(variant, ExactVariant) else compile_coded
        return compile_one(replace(variant, blocks=blocks), (9, 0)).report

    codes, eight = Codes(64, 8, 2, "transposed"), fitting(ExactVariant("float16", 128, 8))
    assert numbers(TEXT, r"3 or 4 blocks spill ([\d,]+) or ([\d,]+) bytes") == [
        report(eight, blocks).spill_bytes for blocks in (3, 4)
    ]
    brain = ExactVariant("bfloat16", 128, 4, query="bfloat16")
    alone, asked = (report(brain, blocks) for blocks in (0, 4))
    assert numbers(LOG, r"same registers, (\d+), and would have (\d+) with (\d+) bytes spilled") == [
        alone.registers, asked.registers, asked.spill_bytes,
    ]  # fmt: skip
    of_recipe = coded_variant(4, codes, codes, turning=True, gains=True, query="float32")
    assert numbers(LOG, r"the kernel of recipe pqkv has (\d+) and would have (\d+)") == [
        report(of_recipe, blocks).registers for blocks in (0, 5)
    ]
    registers = [report(coded_variant(4, codes, codes), blocks).registers for blocks in (0, 5)]
    assert numbers(LOG, r"It has (\d+) registers either way") * 2 == registers
