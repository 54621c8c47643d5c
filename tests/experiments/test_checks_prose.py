"""Figures of experiments/checks that prose cites are those of the records that the checks left."""

import csv

import pytest
from prose import ROOT, numbers, script, text_of

from pqkv.record import load_records

SPEED, SWEEPS, MEASURES = (text_of(f"docs/{page}.md") for page in ("how-to/speed", "how-to/sweep", "measures"))
INTERVAL = r"\[([+-][\d.]+)%, ([+-][\d.]+)%\]"


@pytest.fixture(scope="module")
def checks():
    """Rows by (check, model, context or prompt)."""
    found = {}
    for record in load_records(ROOT / "results/checks"):
        if record.kind == "check":
            c = record.config
            found[c["check"], c.get("model"), c.get("context") or c.get("prompt")] = record.tables[c["check"]]
    return found


def test_what_the_schedule_costs(checks):
    for model, pattern in (
        ("smollm2", r"([\d.]+) to ([\d.]+) plain forwards at 4,096 tokens on SmolLM2"),
        ("reference", r"on SmolLM2, ([\d.]+) on the bundled model"),
    ):
        times = [round(row["times"], 1) for row in checks["schedule_cost", model, 4096]]
        told = numbers(MEASURES, pattern)
        assert told == [min(times), max(times)] if len(told) == 2 else set(times) == set(told)


def test_how_fast_the_bundled_model_runs(checks):
    rates = {row["cache"]: row["tokens_per_s"] for row in checks["generate_rate", "reference", 4096]}
    told = numbers(SPEED, r"runs at ([\d.]+) tokens/s with 4 bits, `DynamicCache` at ([\d.]+)")
    assert told == [round(rates["4 bits"], 1), round(rates["DynamicCache, sdpa"], 1)]


@pytest.mark.parametrize(
    ("model", "context", "pattern"),
    [("smollm2", 1024, r"plain transformers\**: ([\d.]+) beside ([\d.]+) on (\d+) windows of 1,024"),
     ("reference", 2048, r"plain transformers\**: ([\d.]+) beside ([\d.]+) on all (\d+) windows of 2,048")],
)  # fmt: skip
def test_the_exact_perplexity_is_that_of_plain_transformers(checks, model, context, pattern):
    plain = [rows for (check, _, length), rows in checks.items() if (check, length) == ("plain_perplexity", context)]
    ((row,),) = plain
    (own,) = (
        r.metrics["perplexity_exact"].value
        for r in load_records(ROOT / "results/checks")
        if r.kind == "eval" and (r.config["model"], r.config["context"]) == (model, context)
    )
    assert numbers(text_of("experiments/quality/README.md"), pattern) == [
        round(own, 6),
        round(row["perplexity"], 6),
        row["windows"],
    ]
    assert own == pytest.approx(row["perplexity"], abs=1e-3)


def test_ties_and_the_memory_of_a_large_vocabulary(checks):
    log = text_of("experiments/LOG.md")
    (row,) = checks["code_ties", "smollm2", None]
    assert numbers(log, r"SmolLM2\*\*: ([\d,]+) of ([\d,]+) codes differ") == [row["differ"], row["codes"]]
    small = sorted(checks["code_ties", "reference", None], key=lambda r: -r["bits"])
    told = numbers(
        log, r"on the bundled model (\d+), (\d+) and (\d+) of ([\d,]+), ([\d,]+) and ([\d,]+) at 4, 3 and 2 bits"
    )
    assert told == [r["differ"] for r in small] + [r["codes"] for r in small]
    (row,) = checks["memory_of_a_cell", "gemma3-shaped", 8192]
    told = numbers(log, r"262,144\*\* take ([\d.]+) GiB beside the weights, ([\d.]+) in all; the plan said ([\d.]+)")
    assert told == [round(row["more_gib"], 2), round(row["peak_gib"], 1), round(row["estimated_gib"], 2)]


def test_what_device_functions_cost():
    def table(name):
        with (ROOT / "experiments/checks" / name).open(newline="") as file:
            return {(r["kernel"], r["variant"], r["sm"]): r for r in csv.DictReader(file)}

    log = text_of("experiments/LOG.md")
    before, after = table("kernel_resources_before.csv"), table("kernel_resources.csv")
    assert numbers(log, r"of three launches\. [^:]*: (\d+) variants and\s+capabilities") == [len(after)]
    assert numbers(log, r"beside it; (\d+) of them before") == [len(before)]
    spilling = {key: int(row["spill"]) for key, row in after.items() if int(row["spill"])}
    assert spilling == {("exact", "d128 bfloat16 g4", "90"): 8}  # since blocks are asked of it

    chosen = {key: row for key, row in before.items() if not after[key]["asked"]}  # by the assembler, before and after
    assert len(before) - len(chosen) == 5

    def moved(column):
        return [int(after[key][column]) - int(row[column]) for key, row in chosen.items()]

    registers, blocks = moved("registers"), moved("blocks")
    assert numbers(log, r"(\d+) rows take fewer registers, (\d+) as\s+many, (\d+) more") == [
        sum(d < 0 for d in registers), sum(d == 0 for d in registers), sum(d > 0 for d in registers),
    ]  # fmt: skip
    assert sum(d < 0 for d in blocks) == 6
    assert (sum(d > 0 for d in blocks), max(blocks)) == (10, 3)


def test_needles_of_a_real_model(checks):
    rows = {row["cache"]: row for row in checks["needles", "smollm2", None]}
    (needles,) = (
        r.config["needles"] for r in load_records(ROOT / "results/checks") if r.config.get("check") == "needles"
    )

    def answered(row):
        return round(needles * sum(share for name, share in row.items() if name.startswith("depth_")))

    depths = sum(name.startswith("depth_") for name in rows["exact"])
    *told, share = numbers(
        text_of("docs/how-to/lm-eval.md"),
        r"\s(\d+) of (\d+) are answered on the exact cache, (\d+) on 4 bits, (\d+) on 2 bits, and (\d+) where "
        r".*?with (\d+)% of",
    )
    every = [answered(rows[name]) for name in ("exact", "4 bits", "2 bits", "control")]
    assert told == [every[0], depths * needles, *every[1:]]
    assert share == round(100 * rows["4 bits"]["coded"])


def test_what_sweeps_survive(checks):
    def rows(part):
        return checks[f"sweep_{part}", None, None]

    (kills,), (on_ray,), (shared,) = rows("kills"), rows("kills_on_ray"), rows("shared")
    told = numbers(SWEEPS, r"Of (\d+) small cells under (\d+) SIGKILLs at random instants \((\d+) met")
    assert told == [kills["cells"], kills["kills"], kills["kills_at_work"]]
    told = numbers(SWEEPS, r"with (\d+) of the drivers of a local Ray cluster that outlives them \((\d+)\)")
    assert told == [on_ray["kills"], on_ray["kills_at_work"]]
    for row in (kills, on_ray):
        assert row["records"] == row["outcomes"] == row["cells"] == kills["cells"]
        assert not any(
            row[name]
            for name in (
                "records_lost_or_written_over",
                "records_unequal_to_undisturbed",
                "failed",
                "children_that_outlived",
                "locks_left",
            )
        )
    each, cells = numbers(SWEEPS, r"on one folder each ran (\d+) of the (\d+) cells")
    assert shared["run_by_the_first"] == shared["run_by_the_second"] == each
    assert shared["cells"] == shared["attempts"] == shared["records"] == cells
    assert [row["killed"] for row in rows("ray")] == ["worker", "driver", "raylet"]
    (of,) = numbers(SWEEPS, r"killed in turn lose none of (\d+)")
    for row in rows("ray"):
        assert (row["exit_code"], row["lost_or_written_over"], row["unequal_to_undisturbed"]) == (0, 0, 0)
        assert row["cells"] == row["records"] == of
    plan = rows("plan")[0]
    told = numbers(
        SWEEPS, r"A plan said ([\d.]+) of the time that (\d+) cells took, and ([\d.]+) to ([\d.]+) of the memory"
    )
    names = ("whole_time_ratio", "cells", "memory_ratio_least", "memory_ratio_most")
    assert told == [round(plan[name], 2) for name in names]
    bench = rows("plan_bench")[0]
    told = numbers(SWEEPS, r"of (\d+) cells of `bench` at .*?known ([\d.]+), and ([\d.]+) to ([\d.]+) of the memory")
    names = ("cells", "whole_time_ratio", "memory_ratio_least", "memory_ratio_most")
    assert told == [round(bench[name], 2) for name in names]
    for row in (plan, bench):  # a factor of 2 and of 1.5
        assert 0.5 <= row["whole_time_ratio"] <= 2
        assert 1 / 1.5 <= row["memory_ratio_least"] <= row["memory_ratio_most"] <= 1.5
    planted, few, same = rows("compare")
    assert (same["low"], same["high"], same["exit_code"]) == (0, 0, 0)
    assert (planted["windows"], planted["exit_code"], few["windows"], few["exit_code"]) == (256, 1, 32, 0)
    told = [round(100 * value, 1) for row in (planted, few) for value in (row["low"], row["high"])]
    assert numbers(SWEEPS, r"until KLD is ([\d.]+)% worse") == [round(100 * planted["change"], 1)]
    assert numbers(SWEEPS, rf"of 512 tokens {INTERVAL} and not with 32\s+{INTERVAL}") == told
    log = text_of("experiments/LOG.md")
    assert numbers(log, rf"the interval is {INTERVAL} with 256 windows") == told[:2]
    assert numbers(log, rf"with the first 32 of them it is\s+{INTERVAL}") == told[2:]
    scaling, *rounds = rows("workers")
    told = numbers(SWEEPS, r"quiet cores run ([\d.]+) times the small cells .*? own takes\s+(\d+)% of a core")
    busiest = max(row["driver"] for row in rounds if row["jobs"] == 2)
    assert told == [round(scaling["ratio"], 2), round(100 * busiest)]
    assert (scaling["cores"], scaling["counted"], len(rounds)) == (2, 6, scaling["rounds"])
    many = rows("planning")[-1]
    told = numbers(SWEEPS, r"Planning ([\d,]+) cells takes ([\d.]+) seconds of a processor and (\d+) MB")
    assert told == [many["cells"], round(many["processor_s"], 1), round(many["peak_bytes"] / 1e6)]


def test_how_often_compare_tells_what_chance_did(checks):
    rows = {(row["windows"], row["comparisons"]): row for row in checks["sweep_chance", None, None]}
    shares = [round(100 * rows[8, of][f"{kind}_tells"], 1) for of in (1, 20) for kind in ("percentiles", "compare")]
    log = text_of("experiments/LOG.md")
    told = numbers(log, r"of eight\s+windows apart ([\d.]+) times of\s+100, Student's interval ([\d.]+)")
    assert told + numbers(log, r"of 20 figures together each ([\d.]+) and ([\d.]+)") == shares
    assert numbers(SWEEPS, r"told ([\d.]+) times of 100 pairs of\s+eight windows") == [shares[1]]
    assert numbers(text_of("docs/limits.md"), r"drawn anew told ([\d.]+) of 100 pairs") == [shares[0]]
    gain = 1 - rows[32, 1]["log_ratio_reach"] / rows[32, 1]["compare_reach"]
    assert numbers(log, r"reaches (\d+)% less far") == [round(100 * gain)]
    assert {row["draws"] for row in rows.values()} == set(map(int, numbers(log, r"([\d,]+) draws of each size")))


@pytest.mark.slow
def test_what_bytes_for_centroids_would_gain(capsys):
    check = script("experiments/checks/byte_centroids.py")
    check.main()
    times = {tuple(row.split(" | ")[:2]): float(row.split(" | ")[-1].rstrip(" |")) for row in _rows(capsys)}
    told = r"take ([\d.]+) of the clocks of a token at 4 bits with four heads a block, ([\d.]+)"
    assert numbers(text_of("experiments/LOG.md"), told) == [times["| 4", "4"], times["| 2", "4"]]
    assert times["| 4", "8"] == times["| 2", "8"] == 1


def _rows(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if line[2:3].isdigit()]


def test_which_mutations_live():
    with (ROOT / "results/checks/ptx_mutations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    alive = [row for row in rows if row["outcome"] == "survived"]
    told = numbers(
        text_of("experiments/LOG.md"), r"of (\d+) killed; (\d+) after the launches were widened, and the (\d+) that"
    )
    assert told == [len(rows), len(rows) - len(alive), len(alive)]
    assert all(row["explanation"] for row in alive)


def test_what_the_product_of_kernels_found():
    with (ROOT / "results/checks/ptx_product.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    log = text_of("experiments/LOG.md")
    told = numbers(log, r"\*\*(\d+) of \d+ cells, (\d+) launches, ([\d,]+) statements of warps: no fault")
    assert told == [len(rows), *(sum(int(row[name]) for row in rows) for name in ("launches", "statements"))]
    assert {row["outcome"] for row in rows} == {"ok"}
    assert numbers(log, r"no fault\.\*\* ([\d.]+) hours") == [
        round(sum(float(row["seconds"]) for row in rows) / 3600, 1)
    ]
    assert {row["executed"] for row in rows} == {"1"}  # the PTX of both capabilities is the same


def test_what_ptxas_gives_when_it_is_asked():
    with (ROOT / "experiments/checks/kernel_resources_asked.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    log = text_of("experiments/LOG.md")
    assert all(row["blocks_asked"] == row["blocks_before"] > row["blocks_now"] for row in rows)
    spilled = sorted(int(row["spill_asked"]) for row in rows)
    assert len(rows) == 6
    assert spilled[:3] == [0] * 3
    assert numbers(log, r"the others spill (\d+), (\d+) and (\d+) bytes") == spilled[3:]
    longer = [int(row["code_asked"]) / int(row["code_now"]) - 1 for row in rows if row["spill_asked"] == "0"]
    assert numbers(log, r"up\s+to ([\d.]+)% more instructions; the others") == [round(100 * max(longer), 1)]
