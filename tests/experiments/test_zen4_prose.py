"""Figures in prose on processors with AVX-512 are those of the records beside it."""

from statistics import median

import pandas as pd
import pytest
from bench_cells import cell, took
from prose import ROOT, numbers, script, text_of

from pqkv.record import load_records


@pytest.fixture(scope="module")
def tables():
    return script("experiments/bench/tables.py")


def test_a_processor_with_avx512(tables):
    text, folder = " ".join(text_of("experiments/bench/README.md").split()), "results/bench-zen4"

    def reached(context):
        found = [cell(tables, context, bits, "bytes", folder) for bits in (4, 3, 2)]
        return [round(record.metrics["speedup"].value, 2) for record in found]

    told = numbers(
        text,
        r"4 and 3 bits reach ([\d.]+) and ([\d.]+) times at 1,024 tokens \(aim 1.5\) and ([\d.]+) and ([\d.]+) times "
        r"at 4,096 \(3\), 4 bits ([\d.]+) times at 32,768 \(4.5\)",
    )
    assert told == [*reached(1024)[:2], *reached(4096)[:2], reached(32768)[0]]
    assert all(found >= aim for found, aim in zip(told, (1.5, 1.5, 3, 3, 4.5), strict=True))
    told = numbers(
        text,
        r"2 bits at every length \(([\d.]+) of 1.5, ([\d.]+) of 4, ([\d.]+) of 7 and ([\d.]+) of 8\), 3 bits at "
        r"32,768 tokens \(([\d.]+) of 5\), and at 131,072 tokens 4 and 3 bits \(([\d.]+) of 4.5 and ([\d.]+) of 5\)",
    )
    lengths = 1024, 4096, 32768, 131072
    assert told == [*(reached(n)[2] for n in lengths), reached(32768)[1], *reached(131072)[:2]]
    assert all(found < aim for found, aim in zip(told, (1.5, 4, 7, 8, 5, 4.5, 5), strict=True))
    bytes_alone = {
        r.config["num_subspaces"]: round(r.metrics["speedup"].value, 2)
        for r in load_records(ROOT / folder)
        if (r.config["backend"], r.config["bits"], r.config["context"]) == ("cpu-8bit", 4, 32768)
    }
    told = numbers(text, r"tokens \(6\) reaches ([\d.]+) times with 128 codes of 4 bits, and ([\d.]+) with 64 of 8")
    assert told == [bytes_alone[128], bytes_alone[64]]
    pages = {
        r.config["context"]: round(r.metrics["speedup"].value, 2)
        for r in load_records(ROOT / folder)
        if r.config["dtype"] == "bfloat16"
    }
    told = numbers(text, r"all of it: ([\d.]+), ([\d.]+), ([\d.]+) and ([\d.]+) times")
    assert told == [pages[context] for context in sorted(pages)]
    assert all(found >= aim for found, aim in zip(told, (0.7, 1, 1.2, 1.2), strict=True))
    pairs = [[took(cell(tables, 32768, bits, form, folder)) for form in ("bytes", "floats")] for bits in (4, 3, 2)]
    told = numbers(text, r"byte tables take ([\d.]+), ([\d.]+) and ([\d.]+) of the time of floats \(4")
    assert told == [round(by_bytes / by_floats, 2) for by_bytes, by_floats in pairs]
    others = [took(cell(tables, 32768, 3, path, folder)) / pairs[1][0] for path in ("avx2", "portable")]
    told = numbers(text, r"by AVX2's path ([\d.]+) times and by `portable` ([\d.]+) times")
    assert told == [round(other, 2) for other in others]


def test_zen4_before_and_since(tables):
    """Codes gain at 32,768 tokens, and what is told of turns is theirs."""
    found = {}
    for (context, bits), of in tables.turn_records().items():
        own = [[took(record) for record in of[which]] for which in ("before", "since")]
        found[context, -bits] = [round(since / before, 2) for before, since in zip(*own, strict=True)]
    said = [*found[32768, 4], *found[32768, 3]]
    told = numbers(
        " ".join(text_of("experiments/LOG.md").split()),
        r"4 and 3 bits take ([\d.]+) to ([\d.]+) of the time at 32,768 tokens, 2 bits ([\d.]+) to ([\d.]+);",
    )
    assert told == [min(said), max(said), min(found[32768, 2]), max(found[32768, 2])]
    assert max(said) < 1
    changes = " ".join(text_of("CHANGELOG.md").split())
    assert numbers(changes, r"4 and 3 bits take ([\d.]+) to ([\d.]+) of the time at 32,768 tokens on Zen 4") == told[:2]
    short = [ratio for (context, _), ratios in found.items() if context < 32768 for ratio in ratios]
    assert min(short) < 1 < max(short)
    table = pd.read_csv(ROOT / "results/checks/byte_instructions.csv").set_index(
        ["path", "planes", "processor", "nbits", "d_sub"]
    )
    before = pd.read_csv(ROOT / "results/checks/byte_instructions_before.csv").set_index(table.index.names)
    told = numbers(" ".join(text_of("experiments/LOG.md").split()), r"on Cascade Lake \(([\d.]+) for ([\d.]+)\); they")
    assert told == [of.loc[("avx2", 2, "cascadelake", 6, 2), "keys"] for of in (table, before)]


def test_zen4_held_to_avx2():
    text = " ".join(text_of("experiments/bench/README.md").split())
    found = {
        (r.config["bits"], r.config["num_subspaces"]): r.metrics["speedup"].value
        for r in load_records(ROOT / "results/bench-zen4-avx2")
    }
    told = numbers(
        text,
        r"3 bits reach ([\d.]+) times, 128 codes of 4 bits \(4 bits an element\) ([\d.]+) and 64 of them \(2 bits\) "
        r"([\d.]+), codes of 8 bits by floats ([\d.]+) \(4 bits\) and ([\d.]+) \(2 bits\), "
        r"pages of bfloat16 ([\d.]+\d)",
    )
    assert told == [round(found[cell], 2) for cell in ((3, 64), (4, 128), (2, 64), (4, 64), (2, 32), (0, None))]
    assert min(told) >= 2


def test_one_call_a_step(tables):
    """Every cell takes less time, in every turn."""
    text, log = (" ".join(text_of(f"experiments/{page}").split()) for page in ("bench/README.md", "LOG.md"))
    ratios, speedups = {}, {}
    for (context, bits), of in tables.turn_records(tables.ONE_CALL).items():
        own = [[took(record) for record in of[which]] for which in ("before", "since")]
        ratios.setdefault(context, []).extend(round(since / before, 2) for before, since in zip(*own, strict=True))
        speedups[context, -bits] = median(record.metrics["speedup"].value for record in of["since"])
    spans = [edge(ratios[context]) for context in (1024, 4096, 32768) for edge in (min, max)]
    assert max(spans) < 1
    told = numbers(
        log,
        r"\*\*In turns\*\*: ([\d.]+) to ([\d.]+) of the time at 1,024 tokens, ([\d.]+) to ([\d.]+) at 4,096, "
        r"([\d.]+) to ([\d.]+) at 32,768",
    )
    assert told == spans
    changes = " ".join(text_of("CHANGELOG.md").split())
    told = numbers(changes, r"on Zen 4 ([\d.]+) to ([\d.]+) of the time at 1,024 tokens, ([\d.]+) to ([\d.]+) at")
    assert told == spans[:4]
    three = r"([\d.]+), ([\d.]+) and ([\d.]+)"
    told = numbers(
        log, rf"medians of three turns, {three} times at 1,024 \(4, 3, 2 bits\), {three} at 4,096, {three} at 32,768"
    )
    assert told == [round(speedups[context, bits], 2) for context in (1024, 4096, 32768) for bits in (4, 3, 2)]
    told = numbers(text, rf"medians of three, below, are {three} for 4 bits")
    assert told == [round(speedups[context, 4], 2) for context in (1024, 4096, 32768)]


def test_a_step_that_finds_nothing_in_a_cache(tables):
    text = " ".join(text_of("experiments/bench/README.md").split())
    (alone,) = (
        r.metrics["latency_ms"].value
        for r in load_records(ROOT / "results/bench-parts-zen4")
        if (r.config["bits"], r.config["context"]) == (4, 1024)
    )
    told = numbers(text, r"that takes ([\d.]+) ms here takes ([\d.]+) where only")
    assert told == [round(took(cell(tables, 1024, 4, "bytes", "results/bench-zen4")), 2), round(alone, 2)]


def test_another_processor_with_avx512(tables):
    text, folder = text_of("experiments/bench/README.md"), "results/bench-avx512"
    found = {bits: cell(tables, 131072, bits, "bytes", folder).metrics for bits in (4, 3, 2)}
    told = numbers(text, r"codes run at ([\d.]+) \(4 bits\), ([\d.]+) \(3\) and ([\d.]+) times \(2\)")
    assert told == [round(found[bits]["speedup"].value, 2) for bits in (4, 3, 2)]


def test_zen4_of_the_pages(tables):
    found = {bits: cell(tables, 32768, bits, "bytes", "results/bench-zen4") for bits in (4, 3, 2)}
    reached = [round(found[bits].metrics["speedup"].value, 2) for bits in (4, 3, 2)]
    page = text_of("docs/how-to/speed.md")
    told = numbers(page, r"Zen 4 \(AVX-512\) 4, 3 and 2 bits run\s+at ([\d.]+), ([\d.]+) and ([\d.]+) times")
    assert told == reached
    short = [cell(tables, 1024, bits, "bytes", "results/bench-zen4").metrics["speedup"].value for bits in (4, 3, 2)]
    span = [round(min(short), 2), round(max(short), 2)]
    limits = " ".join(text_of("docs/limits.md").split())
    assert numbers(limits, r"int8 centroids are faster at 1,024 \(([\d.]+) to ([\d.]+) times") == span
    front = " ".join(text_of("README.md").split())
    told = numbers(
        front,
        r"Zen 4 cores with AVX-512 at ([\d.]+) \(4 bits\), ([\d.]+) and ([\d.]+) times, .*? and at ([\d.]+) to "
        r"([\d.]+) times at 1,024 tokens",
    )
    assert told == [*reached, *span]


def test_cycles_of_the_log(tables):
    now, before = (
        pd.read_csv(ROOT / f"results/checks/byte_cycles{which}.csv").set_index(["planes", "nbits", "d_sub", "heads"])
        for which in ("", "_before")
    )
    text = " ".join(text_of("experiments/LOG.md").split())
    told = numbers(
        text,
        r"together ([\d.]+) in place of ([\d.]+) for 8 bits, ([\d.]+) in place of ([\d.]+) for 6 bits; four bits of "
        r"one element ([\d.]+) in place of ([\d.]+); eight heads ([\d.]+) in place of ([\d.]+):",
    )
    shapes = [(2, 8, 2, 4), (2, 6, 2, 4), (2, 4, 1, 4), (2, 8, 2, 8)]
    both = [[table.loc[shape, "keys"] + table.loc[shape, "values"] for table in (now, before)] for shape in shapes]
    assert told == [round(cycles, 1) for pair in both for cycles in pair]
