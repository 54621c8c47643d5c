"""Figures in prose of blocks that kernels ask for, as an H100 and an H200 timed them and as the assembler has them."""

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

TEXT, LOG = map(text_of, ("experiments/gpu/README.md", "experiments/LOG.md"))
RUNS = {"H100": "13a412d", "H200": "3e16c82"}


@pytest.fixture(scope="module")
def tables():
    return script("experiments/gpu/tables.py")


@pytest.fixture(scope="module")
def timed(tables):
    """By card and variant: blocks where nothing is asked, its row, rows that ask."""
    found = {}
    for card in RUNS:
        for alone, asking in tables.of_kernels(tables.FOLDER, card).values():
            found.setdefault(card, {})[variant_of(alone)] = alone["blocks"], alone, asking
    return found


def variant_of(row):
    """What the check timed."""
    group = row["heads"] // 8
    if not row["codes"]:
        return fitting(ExactVariant(row["dtype"], 128, group, query=row["dtype"]))
    subspaces, nbits = map(int, re.findall(r"\d+", row["codes"]))
    codes = Codes(subspaces, nbits, 128 // subspaces, "transposed")
    if row["kernel"] == "plain":
        return PlainVariant(group, codes, codes)
    beside = {"turning": True, "gains": True, "query": "float32"} if row.get("recipe") else {}
    return coded_variant(group, codes, codes, **beside)


def exact(dtype="float16", group=4):
    return fitting(ExactVariant(dtype, 128, group, query=dtype))


def coded(bits=4, group=4):
    codes = Codes(*((64, 8, 2) if bits == 4 else (32, 8, 4)), "transposed")
    return coded_variant(group, codes, codes)


def test_what_was_timed(tables):
    found = {
        card: (r.git["commit"][:7], r.git["dirty"])
        for r in load_records(tables.FOLDER / "checks") for card in RUNS if card in r.env["gpus"][0]["name"]
    }  # fmt: skip
    assert found == {card: (commit, False) for card, commit in RUNS.items()}


def test_blocks_are_asked_for_where_it_pays(timed):
    """Where the interval says so on every card that timed it, and as many as took the least time; nowhere else."""
    paid = {"H100": 0, "H200": 0}
    for card, of in timed.items():
        for variant, (_, _, asking) in of.items():
            best = min(asking, key=lambda row: row["times"])
            pays = best["high"] < 0.99
            assert launch_bounds(variant, (9, 0)) == ((variant.block, best["blocks"]) if pays else None)
            paid[card] += pays
    assert paid == {"H100": 3, "H200": 2}
    assert timed["H200"].keys() < timed["H100"].keys()


def test_what_asking_for_blocks_does(timed):
    def least(card, variant, digits):
        return round(min(row["times"] for row in timed[card][variant][2]), digits)

    told = (
        r"take ([\d.]+) of the time on an H100 and ([\d.]+) on an H200 with four blocks, the same in bfloat16 ([\d.]+)"
    )
    brain = exact("bfloat16")
    halves = [least(card, exact(), 2) for card in RUNS]
    assert numbers(TEXT, told) == [*halves, least("H100", brain, 2)]
    fours = [least(card, coded(), 3) for card in RUNS]
    assert numbers(TEXT, r"the kernel of 4 bits ([\d.]+) and ([\d.]+); those") == fours
    assert numbers(LOG, r"([\d.]+) of the time in bfloat16, where an H200") == [least("H100", brain, 2)]
    whole = next(rows for variant, (*_, rows) in timed["H100"].items() if getattr(variant, "turning", False))
    assert numbers(LOG, r"kernel of 4 bits takes ([\d.]+) with a fifth") == [round(whole[0]["times"], 3)]
    assert whole[0]["low"] > 1
    assert numbers(LOG, r"A block more makes exact pages ([\d.]+) times as fast") == [
        round(1 / min(row["times"] for row in timed["H200"][exact()][2]), 2)
    ]
    told = r"\(([\d.]+) of the step's time with 4 blocks in place of (\d)\) and the kernel of 4 bits \(([\d.]+)\)"
    assert numbers(LOG, told) == [halves[1], timed["H200"][exact()][0], fours[1]]
    assert sum(len(asking) for _, _, asking in timed["H200"].values()) == 9
    for card in RUNS:  # the two that had lost a block, the two that nothing is asked of, and eight heads
        plain = next(variant for variant in timed[card] if isinstance(variant, PlainVariant))
        lost = next(variant for variant in timed[card] if not isinstance(variant, ExactVariant) and variant.group == 2)
        assert all(row["low"] > 1 for variant in (plain, lost) for row in timed[card][variant][2])
        two = timed[card][coded(bits=2)][2][0]
        assert two["low"] < 1 < two["high"]
        assert all(row["low"] > 1.8 for row in timed[card][exact(group=8)][2])
    assert numbers(LOG, r"the plain kernel, ([\d.]+) times as slow here") == [
        round(next(rows for v, (*_, rows) in timed["H200"].items() if isinstance(v, PlainVariant))[0]["times"], 2)
    ]
    blocks = 64 * choose_splits(64, 32768, 132)
    told = r"exact pages are (\d+) blocks, of which 132 multiprocessors run (\d+) with three each, while (\d+) wait"
    assert numbers(TEXT, told) == [blocks, 3 * 132, blocks - 3 * 132]
    told = r": (\d+) blocks of exact pages, and (\d+) places with three blocks a multiprocessor, (\d+) with four"
    assert numbers(LOG, told) == [blocks, 3 * 132, 4 * 132]


@pytest.mark.slow
def test_eight_heads_in_one_block_or_in_two(timed):
    eight, four = (exact(group=group) for group in (8, 4))
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
    (_, _, (asked, _)), (_, alone, _) = (timed["H200"][variant] for variant in (four, eight))
    assert numbers(LOG, r"twice the ([\d.]+) that four heads take is more than the ([\d.]+) of eight") == [
        round(asked["step_us"], 1), round(alone["step_us"], 1),
    ]  # fmt: skip
    assert 2 * asked["step_us"] > alone["step_us"]


@pytest.mark.slow
def test_what_the_assembler_makes_of_what_is_asked():
    """Registers and spills of kernels with what is asked of them, and of those that would take too much."""

    def report(variant, blocks):
        compile_one = compile_exact if isinstance(variant, ExactVariant) else compile_coded
        return compile_one(replace(variant, blocks=blocks), (9, 0)).report

    codes, eight = Codes(64, 8, 2, "transposed"), exact(group=8)
    assert numbers(TEXT, r"3 or 4 blocks spill ([\d,]+) or ([\d,]+) bytes") == [
        report(eight, blocks).spill_bytes for blocks in (3, 4)
    ]
    alone, asked = (report(exact("bfloat16"), blocks) for blocks in (0, 4))
    assert numbers(TEXT, r"In bfloat16 (\d+) bytes a thread are spilled") == [asked.spill_bytes]
    assert numbers(LOG, r"same registers, (\d+), and would have (\d+) with (\d+) bytes spilled") == [
        alone.registers, asked.registers, asked.spill_bytes,
    ]  # fmt: skip
    of_recipe = coded_variant(4, codes, codes, turning=True, gains=True, query="float32")
    assert numbers(LOG, r"the kernel of recipe pqkv has (\d+) and would have (\d+)") == [
        report(of_recipe, blocks).registers for blocks in (0, 5)
    ]
    registers = [report(coded_variant(4, codes, codes), blocks).registers for blocks in (0, 5)]
    assert numbers(LOG, r"It has (\d+) registers either way") * 2 == registers
