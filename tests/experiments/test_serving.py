"""Figures in the prose of experiments/serving are those of its records."""

import pytest
from prose import ROOT, numbers, script, text_of

from pqkv.lab.allocation import allocate
from pqkv.record import load_records

TEXT = text_of("experiments/serving/README.md")


@pytest.fixture(scope="module")
def tables():
    return script("experiments/serving/tables.py")


def said(pattern):
    return numbers(TEXT, pattern)


@pytest.fixture(scope="module")
def losses(tables):
    """(KLD over that of product codes, change of perplexity in percent) by whole bits."""
    found = {}
    for line in tables.loss().splitlines()[2:]:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[6]:
            found.setdefault(int(float(cells[2])), []).append((float(cells[6]), float(cells[3].split("%")[0])))
    return found


def test_what_the_recipe_loses(losses):
    def spread(bits, i):
        return [pick(pair[i] for pair in losses[bits]) for pick in (min, max)]

    assert said(r"loses ([\d.]+) to ([\d.]+) of what product codes do at 4") == spread(4, 0)
    assert said(r"at 4 bits and ([\d.]+) to ([\d.]+) at 3\*\*") == spread(3, 0)
    assert said(r"4 bits rises by ([\d.]+)% to ([\d.]+)%") == spread(4, 1)
    assert said(r"gains little\*\*: ([\d.]+) to ([\d.]+), and") == spread(2, 0)
    assert said(r"perplexity rises by ([\d.]+)% to ([\d.]+)%\. In") == spread(2, 1)


def test_the_bars_of_the_default_cache():
    """Perplexity within 0.5% at 4 bits and 5% at 2, at 1,024 tokens; KLD at 4 bits three times the floor at most."""
    found, floors = {}, {}
    for record in load_records(ROOT / "results/quality"):
        c = record.config
        if (c["model"], c["data"]) != ("smollm2", "wikitext2-test.txt"):
            continue
        if c.get("floor") == "bfloat16 arithmetic":
            floors[c["context"]] = record.metrics["kld_mean"].value
        elif c.get("recipe") == "pqkv" and c["mode"] == "exact-schedule":
            found[c["context"], int(c["bits"])] = record.metrics
    assert found[1024, 4]["perplexity_ratio"].high <= 1.005
    assert found[1024, 2]["perplexity_ratio"].high <= 1.05
    for context in (512, 1024):
        assert found[context, 4]["kld_mean"].value <= 3 * floors[context]
    assert found[1024, 4]["kld_mean"].value <= 0.0027  # three of a prototype's floor, which is lower than ours


def test_exact_layers_are_never_worth_their_bits():
    dealing = script("experiments/quality-lab/allocate.py")
    records = [r for r in load_records(ROOT / "results/quality-lab/widths") if r.config.get("codec")]
    (alone,) = (r for r in records if r.kind == "eval-by-layer")
    losses = [[row[side] for row in alone.tables["by_layer"]] for side in ("keys", "values")]
    ratios = [{**dealing.ratios(records, side), 16: 0.0} for side in ("keys", "values")]
    for bits in (2, 3, 4, 5):
        dealt = allocate(*losses, *ratios, bits)
        assert 16 not in dealt.keys + dealt.values
    assert 16 in allocate(*losses, *ratios, 8).keys  # where bits are plenty they are


def test_the_cache_is_the_schedule():
    kld, error = {}, 0.0
    for record in load_records(ROOT / "results/serving"):
        if record.kind == "eval" and record.config["windows"] == 2:
            m = record.metrics
            kld[int(record.config["bits"]), record.config["mode"]] = m["kld_mean"].value
            if record.config["mode"] == "token":
                error = max(error, m["softmax_mass_error"].value, m["lse_mass_error"].value)
    gaps = [abs(kld[bits, "token"] / kld[bits, "exact-schedule"] - 1) for bits in (4, 2)]
    assert max(gaps) <= 0.0025  # a fifth of a percent, rounded
    assert said(r"sums to one within ([\de.-]+), against") == [pytest.approx(error, rel=0.06)]


def test_what_a_step_costs():
    times = {}
    for record in load_records(ROOT / "results/serving"):
        if record.kind == "serving":
            c = record.config
            (row,) = [row for row in record.tables["parts"] if row["parts"] == "all"]
            times[int(c["model"].rsplit(" ", 1)[1]), int(c["bits"]), c["context"]] = round(row["times"], 2)
    assert said(r"cost ([\d.]+) times a step of product codes at 4 bits and 32,768 tokens, and ([\d.]+) at 4,096") == [
        times[128, 4, context] for context in (32768, 4096)
    ]

    def spread(**fixed):
        own = [
            time for key, time in times.items() if all(key[("heads", "bits").index(n)] == v for n, v in fixed.items())
        ]
        return [min(own), max(own)]

    assert said(r"1\.2, missed at 4,096\); ([\d.]+) to ([\d.]+) at 3 bits") == spread(heads=128, bits=3)
    assert said(r"\*\*([\d.]+) to ([\d.]+) at 2 bits\*\*") == spread(heads=128, bits=2)
    assert times[128, 4, 32768] <= 1.2 < times[128, 4, 4096]
    every = [time for (heads, _, _), time in times.items() if heads == 128]
    assert f"takes {min(every):.2f} to {max(every):.2f} times that with heads of 128" in text_of("docs/how-to/speed.md")
    assert said(r"KV head it is ([\d.]+) to ([\d.]+): a step") == spread(heads=64)


def test_int8_centroids_at_three_bits():
    rows = [
        {row["parts"]: row["times"] for row in record.tables["parts"]}
        for record in load_records(ROOT / "results/serving")
        if record.kind == "serving" and record.config["bits"] == 3
    ]
    alone = [round(times["int8"], 2) for times in rows]
    assert said(r"a step at 3 bits\*\* \(([\d.]+) to ([\d.]+) of it\)") == [min(alone), max(alone)]
    assert min(times["all"] for times in rows) > 1


def test_what_everything_takes():
    bits = {}
    for record in load_records(ROOT / "results/serving"):
        if record.kind == "eval" and record.config["windows"] == 16:
            c = record.config
            bits[c["model"], c["scope"], c["dtype"], "made_of" in c] = record.tables["memory"][0]["effective_bits"]
    head = bits["smollm2", "head", "bfloat16", False], bits["reference", "head", "float32", False]
    assert said(r"exact parts takes ([\d.]+) bits \(bar: 5\.9\)") == [round(head[0], 2)]
    assert said(r"float32 ones ([\d.]+) \(bar: 6\.95\)") == [round(head[1], 2)]
    assert head[0] < 5.9
    assert head[1] < 6.95
    bare = bits["smollm2", "head", "bfloat16", True], bits["reference", "head", "float32", True]
    assert said(r"no matrix\) it is ([\d.]+) and ([\d.]+) \(bars") == [round(one, 2) for one in bare]
    assert bare[0] < 5.5
    assert bare[1] < 6.6
