"""Figures in the prose of experiments/gpu on kernels before today's, on parts of a step, and on the bundled model."""

import csv

import pytest
from prose import ROOT, numbers, script, text_of

from pqkv.record import load_records

TEXT, SPEED, LOG = map(text_of, ("experiments/gpu/README.md", "docs/how-to/speed.md", "experiments/LOG.md"))


@pytest.fixture(scope="module")
def tables():
    return script("experiments/gpu/tables.py")


@pytest.fixture(scope="module")
def speedups(tables):
    """By (query heads, KV heads, batch, tokens) and bits."""
    found = tables.by_cell(load_records(tables.FOLDER / "bench"))
    return {cell: {bits: record.metrics["speedup"].value for bits, record in of.items()} for cell, of in found.items()}


def test_speed_ups_with_eleven_launches(speedups):
    reached = max(of[0] for of in speedups.values())
    assert numbers(TEXT, r"reached at most ([\d.]+) of the fastest") == [round(reached, 2)]
    assert all(of[bits] < 1 for (heads, kv, _, _), of in speedups.items() if heads // kv == 8 for bits in (4, 3, 2))


def test_a_table_has_what_was_not_timed_again(tables, speedups):
    again, _ = tables.by_recipe(tables.FOLDER / tables.CARDS["H100"])
    assert len(tables.speed().splitlines()) - 2 == len(speedups) - len(again) == 10


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


@pytest.fixture(scope="module")
def parts():
    """Microseconds of steps by batch, bits, tokens, and launches: 7, 3 told from the race, 4 counted."""
    serving, found = script("experiments/serving/tables.py"), {}
    for record in serving.serving_records(ROOT / "results/gpu/parts"):
        c = record.config
        launches = serving.launches_of(record)[0]
        found[c.get("batch", 1), c["bits"], c["context"], launches] = {
            row["parts"]: (1e3 * row["median_ms"], row["times"]) for row in record.tables["parts"]
        }
        assert not record.git["dirty"]
        assert record.env["gpus"][0]["name"].startswith("NVIDIA H100")
        assert serving.has_count(record) == (record.git["commit"][:7] == "13a412d") == (launches == 4)
    return found


def span(values):
    return [round(pick(values), 2) for pick in (min, max)]


def test_what_recipe_pqkv_adds(parts):
    wholes = {launches: [of["all"][1] for key, of in parts.items() if key[3] == launches] for launches in (7, 4)}
    assert numbers(TEXT, r"together take ([\d.]+) to ([\d.]+) times a step") == span(wholes[4])
    assert numbers(TEXT, r"Seven launches a step had given ([\d.]+) to ([\d.]+\d)") == span(wholes[7])
    assert numbers(SPEED, r"and ([\d.]+) to ([\d.]+) times on an H100") == span(wholes[4])
    processor = [
        {row["parts"]: row["times"] for row in record.tables["parts"]}
        for record in load_records(ROOT / "results/serving")
        if record.kind == "serving" and record.config["model"].endswith("of 128")
    ]
    assert numbers(TEXT, r"on a processor ([\d.]+) to ([\d.]+)") == span([times["all"] for times in processor])
    bias = [times["frame, turning"] - times["frame"] for times in processor]
    assert numbers(LOG, r"a processor pays up to ([\d.]+)") == [round(max(bias), 2)]


def test_what_the_bias_by_position_takes(parts):
    def more(launches, i):
        of = [parts[8, bits, 32768, launches] for bits in (4, 2)]
        return [found["frame, turning"][i] - found["frame"][i] for found in of]

    large, shares = [parts[8, bits, 32768, 4] for bits in (4, 2)], more(4, 1)
    assert numbers(TEXT, r"\(([\d.]+) of a step at 4 bits, ([\d.]+) at 2\)") == [round(share, 2) for share in shares]
    assert all(share > 0.5 * (of["all"][1] - 1) for share, of in zip(shares, large, strict=True))
    told = r"(\d+) microseconds of a step where the tables before took (\d+) \(batch of 8; (\d+) and (\d+) at 4 bits\)"
    (four, two), (four_before, two_before) = more(4, 0), more(7, 0)
    assert numbers(LOG, told) == [round(us) for us in (two, two_before, four, four_before)]
    assert numbers(TEXT, r"at 4 bits gains take ([\d.]+)") == [round(large[0]["gains"][1], 2)]
    assert numbers(LOG, r"gains, which cost nothing before, take ([\d.]+\d)") == [round(large[0]["gains"][1], 2)]
    assert max(of[name][1] for of in large for name in ("gains", "int8")) == large[0]["gains"][1]
    assert max(large[1]["gains"][1], *(of["int8"][1] for of in large)) < 1.01
    assert max(parts[8, bits, 32768, 7][name][1] for bits in (4, 2) for name in ("gains", "int8")) < 1.01


def test_three_launches_in_place_of_seven(parts):
    before, since = (
        [of for (batch, *_, found), of in sorted(parts.items()) if (batch, found) == (1, launches)]
        for launches in (7, 3)
    )
    steps = [[of["product codes"][0] for of in found] for found in (since, before)]
    ratios = [own / other for own, other in zip(*steps, strict=True)]
    assert len(ratios) == 4
    assert numbers(TEXT, r"\(([\d.]+) to ([\d.]+) of the time\)") == span(ratios)
    saved = [other - own for own, other in zip(*steps, strict=True)]
    assert numbers(TEXT, r"of three took (\d+) microseconds less than one of seven") == [round(sum(saved) / len(saved))]
    told = r"seven: (\d+) microseconds less a step\*\*, ([\d.]+) in place of ([\d.]+) at 4,096 tokens and 4 bits"
    four = [parts[1, 4, 4096, launches]["product codes"][0] for launches in (3, 7)]
    assert numbers(LOG, told) == [round(sum(saved) / len(saved)), *(round(us, 1) for us in four)]


def test_launches_that_were_counted():
    serving = script("experiments/serving/tables.py")
    counted = [r for r in serving.serving_records(ROOT / "results/gpu/parts") if serving.has_count(r)]
    assert len(counted) == 6
    assert {row["kernels"] for record in counted for row in record.tables["parts"]} == {3}
    assert {record.tables["parts"][0]["operations"] for record in counted} == {1}
    alone = {serving.launches_of(r)[1] - 4 for r in counted if r.config.get("batch", 1) == 1}
    assert alone == {9}
    assert "small launches of torch, nine of them" in TEXT
    assert "a step is four launches in these cells, three kernels and one of torch's" in TEXT
    assert "| (7) |" in serving.gpu(counted=False)
    assert "(" not in serving.gpu()
