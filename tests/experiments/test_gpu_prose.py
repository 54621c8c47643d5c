"""Figures in the prose of experiments/gpu, and of README.md on a GPU, are those of the records."""

import csv

import pytest
from prose import ROOT, numbers, script, text_of

from pqkv.record import load_records

TEXT, README = text_of("experiments/gpu/README.md"), text_of("docs/how-to/speed.md")


@pytest.fixture(scope="module")
def tables():
    return script("experiments/gpu/tables.py")


@pytest.fixture(scope="module")
def speedups(tables):
    """By (query heads, KV heads, batch, tokens) and bits."""
    found = tables.by_cell(load_records(tables.FOLDER / "bench"))
    return {cell: {bits: record.metrics["speedup"].value for bits, record in of.items()} for cell, of in found.items()}


def test_speed_ups(speedups):
    large = speedups[32, 32, 8, 32768]
    assert numbers(TEXT, r"4 bits are ([\d.]+) times and 2 bits ([\d.]+) times as fast at 32,768") == [
        round(large[4], 1), round(large[2], 1),
    ]  # fmt: skip
    assert numbers(TEXT, r"of one sequence it is ([\d.]+) times") == [round(speedups[32, 32, 1, 32768][4], 1)]
    grouped = speedups[32, 8, 8, 32768]
    assert numbers(README, r"is ([\d.]+) times as fast on 4 bits and ([\d.]+) times on 2 bits") == [
        round(large[4], 1), round(large[2], 1),
    ]  # fmt: skip
    assert numbers(README, r"for 32 query heads ([\d.]+) and ([\d.]+) times") == [
        round(grouped[4], 1), round(grouped[2], 1),
    ]  # fmt: skip
    assert numbers(TEXT, r"reach at most ([\d.]+) of the fastest") == [round(max(s[0] for s in speedups.values()), 2)]


def test_where_codes_win(speedups):
    assert all(s[bits] < 1 for (heads, kv, _, _), s in speedups.items() if heads // kv == 8 for bits in (4, 3, 2))
    alone = {n: s for (heads, kv, batch, n), s in speedups.items() if heads // kv == 4 and batch == 1}
    assert all(s[bits] < 1 for n, s in alone.items() if n < 131072 for bits in (4, 3, 2))
    assert all(alone[131072][bits] > 1 for bits in (4, 3, 2))


def test_what_bounds_a_step(tables):
    with (tables.FOLDER / "kernels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert min(float(row["us"]) for row in rows) == pytest.approx(2.4, abs=0.05)
    assert [sum(row["bits"] == bits for row in rows) for bits in ("4", "2")] == [11, 11]
    coded = {row["bits"]: row for row in rows if row["kernel"] == "coded"}
    measured = [round(float(coded[bits]["us"])) for bits in ("4", "2")]
    assert numbers(TEXT, r"the profiler measures (\d+) and (\d+)") == measured
    low, high = sorted(
        us / model for us, model in zip(measured, numbers(TEXT, r"predicted (\d+) microseconds at 4 bits and (\d+) at"),
                                        strict=True)
    )  # fmt: skip
    assert numbers(TEXT, r"by a factor of ([\d.]+) to ([\d.]+)") == [round(low, 1), round(high, 1)]
    assert numbers(TEXT, r"Memory is used to (\d+)% and (\d+)%") == [
        round(float(coded[bits]["dram_percent"])) for bits in ("4", "2")
    ]
    exact = next(row for row in rows if row["bits"] == "0" and row["kernel"] == "exact")
    said = numbers(TEXT, r"\((\d+) registers, (\d+)% of the places\) to keep memory busy: (\d+)%")
    assert said == [round(float(exact[name])) for name in ("registers", "warps_percent", "dram_percent")]


def test_the_bundled_model_on_a_gpu(tables):
    (record,) = load_records(tables.FOLDER / "eval")
    assert (record.config["backend"], record.config["mode"], record.env["gpus"][0]["name"][:11]) == (
        "cuda", "token", "NVIDIA H100",
    )  # fmt: skip
    ratio, top = (record.metrics[name].value for name in ("perplexity_ratio", "agreement_at_1"))
    assert numbers(TEXT, r"in float16: \+([\d.]+)% perplexity and ([\d.]+)% top-1") == [
        round(100 * (ratio - 1), 2), round(100 * top, 1),
    ]  # fmt: skip


def test_what_recipe_pqkv_adds(tables):
    found = {}
    for record in load_records(tables.FOLDER / "parts"):
        c = record.config
        found[c.get("batch", 1), c["bits"], c["context"], "placements" in c] = {
            row["parts"]: row["times"] for row in record.tables["parts"]
        }
        assert not record.git["dirty"]
        assert record.env["gpus"][0]["name"].startswith("NVIDIA H100")
    wholes = [times["all"] for times in found.values()]
    assert numbers(TEXT, r"together take ([\d.]+) to ([\d.]+) times a step") == [
        round(min(wholes), 2),
        round(max(wholes), 2),
    ]
    assert numbers(README, r"and ([\d.]+) to ([\d.]+) times on an H100") == [
        round(min(wholes), 2),
        round(max(wholes), 2),
    ]
    processor = [
        {row["parts"]: row["times"] for row in record.tables["parts"]}
        for record in load_records(ROOT / "results/serving")
        if record.kind == "serving" and record.config["model"].endswith("of 128")
    ]
    steps = [times["all"] for times in processor]
    assert numbers(TEXT, r"on a processor ([\d.]+) to ([\d.]+)") == [round(min(steps), 2), round(max(steps), 2)]
    bias = [times["frame, turning"] - times["frame"] for times in processor]
    log = text_of("experiments/LOG.md")
    assert numbers(log, r"a processor pays up to ([\d.]+)") == [round(max(bias), 2)]
    large = [found[8, bits, 32768, False] for bits in (4, 2)]
    biases = [times["frame, turning"] - times["frame"] for times in large]
    assert numbers(TEXT, r"\(([\d.]+) of a step at 4 bits, ([\d.]+) at 2\)") == [round(bias, 2) for bias in biases]
    assert [bias / (times["all"] - 1) for bias, times in zip(biases, large, strict=True)] == pytest.approx(
        [2 / 3] * 2, abs=0.03
    )
    assert all(max(times["gains"], times["int8"]) < 1.01 for times in large)
    assert "whole step | 59.1" in TEXT


def test_three_launches(tables):
    took = {}
    for record in load_records(tables.FOLDER / "parts"):
        c, rows = record.config, {row["parts"]: 1e3 * row["median_ms"] for row in record.tables["parts"]}
        if c.get("batch", 1) == 1:
            took.setdefault((c["bits"], c["context"]), {})["placements" in c] = rows
    four, two = took[4, 4096], took[2, 4096]
    assert numbers(
        TEXT, r"([\d.]+) in place of ([\d.]+) at 4,096 tokens and 4 bits, ([\d.]+) in place\s+of ([\d.]+)"
    ) == [round(of[new]["product codes"], 1) for of in (four, two) for new in (True, False)]
    assert len(took) == 4
    ratios = [of[True]["product codes"] / of[False]["product codes"] for of in took.values()]
    assert numbers(TEXT, r"\(([\d.]+) to ([\d.]+) of the time in all four") == [
        round(min(ratios), 2),
        round(max(ratios), 2),
    ]
    saved = [of[False]["product codes"] - of[True]["product codes"] for of in took.values()]
    assert numbers(TEXT, r"seven take (\d+) microseconds off") == [round(sum(saved) / len(saved))]
    every = [of[False]["all"] - of[True]["all"] for of in took.values()]
    assert numbers(TEXT, r"recipe pqkv takes (\d+) to (\d+) microseconds less") == [
        round(min(every)),
        round(max(every)),
    ]


def test_launches_are_those_recorded_or_said_to_be_inferred():
    tables = script("experiments/serving/tables.py")
    old = tables.serving_records(ROOT / "results/gpu/parts")[0]
    inferred = 3 if "placements" in old.config else 7
    assert tables.launches_of(old) == (False, inferred)
    counted = [row | {"kernels": 3, "operations": 2} for row in old.tables["parts"]]
    assert tables.launches_of(old.model_copy(update={"tables": {"parts": counted}})) == (True, 5)
    assert f"| ({inferred}) |" in tables.gpu()
    assert "brackets were not recorded" in TEXT
