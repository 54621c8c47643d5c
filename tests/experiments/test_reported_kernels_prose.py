"""Figures in prose of incremental-decode and paged-kernel, on a processor and on a GPU, are those of their tables."""

import csv

import pytest
from prose import ROOT, numbers, text_of

from pqkv.record import load_records

DECODE, PREFILL, REPORTS, LOG = map(
    text_of,
    (
        "experiments/incremental-decode/README.md", "experiments/paged-kernel/README.md", "docs/reports.md",
        "experiments/LOG.md",
    ),
)  # fmt: skip
H100 = "NVIDIA H100 80GB HBM3"
TRIP, WARP, ROWS = (
    "PAR-018: round trip, all rows", "PAR-020: one warp a head", "option A: compacted on the device, all rows",
)  # fmt: skip
TORCH, SPLIT = "sdpa on a static store", "split"


def table(path):
    with (ROOT / "results" / path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def steps():
    """Milliseconds by device, way and tokens."""
    return {
        (row["device"], row["way"], int(row["length"])): float(row["median_ms"])
        for row in table("incremental-decode/c_race.csv")
    }


@pytest.mark.parametrize("name", ["incremental-decode", "paged-kernel"])
def test_rows_of_the_finding_are_rows_of_the_claims(name):
    claims = (ROOT / "results" / name / "claims.md").read_text().splitlines()
    quoted = [line for line in (ROOT / "experiments" / name / "README.md").read_text().splitlines() if line[:2] == "| "]
    assert len(quoted) > 20
    assert set(quoted) <= set(claims)


@pytest.mark.parametrize(
    ("name", "part", "verdicts"),
    [("incremental-decode", "c", ["yes", "nothing claimed", "no", "nothing claimed"]),
     ("paged-kernel", "e", ["not known"])],
)  # fmt: skip
def test_where_a_gpu_ran_its_rows_decide(name, part, verdicts):
    rows = [row for row in table(f"{name}/claims.csv") if row["part"] == part]
    on_gpu, others = ([row for row in rows if (row["gpu"] == row["ours"]) == told] for told in (True, False))
    assert [row["holds"] for row in on_gpu] == verdicts
    assert [row["claim"] for row in on_gpu] == [row["claim"] for row in others]
    assert all(H100 in row["ours"] for row in on_gpu)
    assert {row["holds"] for row in others} <= {"not measurable here", "nothing claimed", "not known"}
    records = [r for r in load_records(ROOT / "results" / name) if r.config.get("machine") == H100]
    assert {(r.git["commit"][:7], r.git["dirty"]) for r in records} == {("13a412d", False)}


def test_what_costs_a_step_on_an_h100(steps):
    def times(way, other, length, device="cuda"):
        return steps[device, way, length] / steps[device, other, length]

    told = r"it takes (\d+) times as long as compacting on the device .*?, and (\d+) times as long as PAR-020"
    assert numbers(DECODE, told) == [round(times(TRIP, other, 1024)) for other in (ROWS, WARP)]
    assert all(times(TRIP, ROWS, length, "cpu") < 2 for length in (1024, 2048, 4096, 8192))
    assert numbers(DECODE, r"an H100 ([\d.]+) ms a layer at 32,768 tokens, (\d+) times what") == [
        round(steps["cuda", WARP, 32768], 1), int(times(WARP, SPLIT, 32768)),
    ]  # fmt: skip
    assert numbers(REPORTS, r"one warp a head (\d+) times as slow as") == [int(times(WARP, SPLIT, 32768))]
    told = r"PAR-018 takes (\d+) times what .* are (\d+) times one row at 32,768 tokens there and ([\d,]+) at"
    every = times(TRIP, ROWS, 1024), times(ROWS, TORCH, 32768), times(ROWS, TORCH, 8192, "cpu")
    assert numbers(LOG, told) == [round(found) for found in every]
    told = r"One warp a head takes (\d+) times as long .*?, and torch's float32 attention (\d+) times"
    assert numbers(LOG, told) == [int(times(WARP, SPLIT, 32768)), round(times(TORCH, SPLIT, 32768))]
    faster = [length for length in (64, 256, 1024, 2048, 4096, 8192, 32768) if times(ROWS, WARP, length) < 1]
    assert faster == [1024, 2048, 4096]
    assert numbers(DECODE, r"float32 attention takes (\d+) times what pages") == [round(times(TORCH, SPLIT, 32768))]
    assert [length for length in (64, 256, 1024, 2048, 4096, 8192, 32768) if times(TORCH, SPLIT, length) < 1] == [64]
    assert all(
        times(TORCH, SPLIT, length, "cpu") < 1 for device, way, length in steps if (device, way) == ("cpu", WARP)
    )
    short, long = (steps["cuda", WARP, length] for length in (256, 1024))
    assert numbers(DECODE, r"about ([\d.]+) ms a step of PAR-020") == [round(short - 256 * (long - short) / 768, 1)]


def test_a_prefill_by_index():
    ms = {
        (row["device"], row["way"]): float(row["median_ms"])
        for row in table("paged-kernel/e_prefill.csv") if row["tokens"] == "2048"
    }  # fmt: skip
    way, tiles, torch = "by index, a row and head at a time", "by pages", "sdpa, contiguous"
    told = (
        r"query: (\d+) times as long as torch's attention on contiguous keys on a processor, ([\d.]+) times on an H100"
    )
    assert numbers(PREFILL, told) == [
        round(ms["cpu", way] / ms["cpu", torch]), round(ms["cuda", way] / ms["cuda", torch], 1),
    ]  # fmt: skip
    to_tiles = round(ms["cuda", way] / ms["cuda", tiles], 1)
    assert numbers(PREFILL, r"operations of torch \(([\d.]+) times\)") == [to_tiles]
    told = r"operations of torch\*\* \(([\d.]+) times\), and ([\d.]+) times as slow"
    assert numbers(LOG, told) == [to_tiles, round(ms["cuda", way] / ms["cuda", torch], 1)]
