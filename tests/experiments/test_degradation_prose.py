"""Figures in the prose of experiments/quality-degradation, of speed and of the LOG are those of their records."""

import re

import pytest
from prose import ROOT, numbers, text_of

from pqkv.record import load_records
from pqkv.reproduce.incremental_decode.race import race_rows
from pqkv.speed.breakdown import SUM, WHOLE

TEXT = text_of("experiments/quality-degradation/README.md")


@pytest.fixture(scope="module")
def coded():
    """Metrics of the bundled model's cells on codes, by (backend, context)."""
    found = {}
    for record in load_records(ROOT / "results/quality-degradation"):
        if record.kind == "eval" and record.config["model"] == "reference" and record.config["bits"]:
            found[record.config["backend"], record.config["context"]] = record.metrics
    return found


def test_faults_on_codes(coded):
    sound, broken = coded["cpu", 512], coded["fault:first-head-page", 512]
    told = numbers(TEXT, r"at 512 tokens from (\d+)% \((\d+)% on the exact cache\) to (\d+)%")
    assert told == [round(100 * m.value) for m in (sound["recall"], sound["recall_exact"], broken["recall"])]
    klds = numbers(TEXT, r"and KLD from ([\d.]+) to ([\d.]+) nats; `double-count`")
    assert klds == [round(sound["kld_mean"].value, 4), round(broken["kld_mean"].value, 2)]
    contexts = sorted({context for _, context in coded if context >= 512})
    twins, doubles = ([coded[name, n] for n in contexts] for name in ("cpu", "fault:double-count"))
    told = numbers(TEXT, r"from 512 tokens on, from ([\d.]+) to ([\d.]+) nats to ([\d.]+) to ([\d.]+)")
    spread = [pick(m["kld_mean"].value for m in cells) for cells in (twins, doubles) for pick in (min, max)]
    assert told == [round(value, 4) for value in spread]
    moved = [b["perplexity_ratio"].value / a["perplexity_ratio"].value - 1 for a, b in zip(twins, doubles, strict=True)]
    assert max(map(abs, moved)) < 0.01


@pytest.fixture(scope="module")
def cells():
    """Metrics of cells on exact pages, by (model, fault, context)."""
    return {
        (r.config["model"], r.config["backend"].removeprefix("fault:"), r.config["context"]): r.metrics
        for r in load_records(ROOT / "results/quality-degradation")
        if r.kind == "eval" and not r.config["bits"]
    }


def of_contexts(cells, fault, metric, *, model="reference", low=0, high=1 << 20):
    """Figures of a fault at contexts from `low` to `high`, shortest first."""
    found = [(n, m[metric].value) for (own, name, n), m in cells.items() if (own, name) == (model, fault)]
    return [value for n, value in sorted(found) if low <= n <= high]


def rounded(values, digits):
    return [float(f"{pick(values):.{digits}g}") for pick in (min, max)]


def test_all_five_on_a_real_model(cells):
    few, many = (of_contexts(cells, f"all-five/{block}", "kld_mean", model="smollm2") for block in (32, 128))
    assert len(few) == len(many) == 3
    assert numbers(TEXT, r"the comment's, cost it ([\d.]+) to ([\d.]+) nats at all three") == rounded(few, 2)
    assert min(many) >= numbers(TEXT, r"in blocks of 128 over (\d+)")[0]
    assert few[2] / few[1] < 1.5  # no step at 2,049


def test_what_a_lost_score_costs(cells):
    ways = ("dropped", "aliased")

    def at_2049(model):
        return [float(f"{cells[model, f'shared-memory-2048/{way}', 2049]['kld_mean'].value:.2g}") for way in ways]

    assert numbers(TEXT, r"the mean KLD is ([\d.]+) nats \(dropped\) and ([\d.]+) \(aliased\)") == at_2049("reference")
    assert numbers(TEXT, r"where the bundled model loses ([\d.]+) and ([\d.]+)") == at_2049("reference")
    told = numbers(TEXT, r"costs SmolLM2 ([\d.]+) nats \(dropped\) or ([\d.]+)")
    assert told == [float(f"{x:.1g}") for x in at_2049("smollm2")]
    ratio = cells["reference", "shared-memory-2048/dropped", 4096]["perplexity_ratio"].value
    assert numbers(TEXT, r"perplexity is (\d+) times as high \(dropped\)") == [round(ratio)]


def test_what_reductions_cost_at_128_tokens(cells):
    tops, sums = (
        [cells["reference", f"warp-{what}/{block}", 128]["perplexity_ratio"].value for block in (64, 128)]
        for what in ("max", "sum")
    )
    low, high, over = numbers(TEXT, r"perplexity (\d+) to (\d+) times for the maximum, over (\d+) times for the sum")
    assert [low, high] == [round(x) for x in sorted(tops)]
    assert over < min(sums)


def test_what_the_five_cost_together(cells):
    below = [of_contexts(cells, f"all-five/{block}", "perplexity_ratio", high=2048) for block in (128, 32)]
    told = numbers(TEXT, r"In blocks of 128 it is (\d+) to (\d+) times as high before")
    assert told == [round(pick(below[0])) for pick in (min, max)]
    *told, beyond = numbers(TEXT, r"is ([\d.]+) to ([\d.]+) times as high up to 2,048 tokens and (\d+) times at 4,096")
    assert told == rounded(below[1], 3)
    assert beyond == round(cells["reference", "all-five/32", 4096]["perplexity_ratio"].value)
    log = text_of("experiments/LOG.md")
    *small, large = numbers(log, r"perplexity ([\d.]+) to ([\d.]+) times up to 2,048 tokens, (\d+) times at 4,096")
    assert (small, large) == (told, beyond)
    assert numbers(log, r"in blocks of 128 it is (\d+) times at least") == [round(min(below[0]))]


def test_what_unread_slots_and_positions_cost(cells):
    zero, stale = "block-granular-length/zero", "block-granular-length/stale"
    told = numbers(TEXT, r"stale vectors cost ([\d.]+) to ([\d.]+) nats at every")
    assert told == rounded(of_contexts(cells, stale, "kld_mean"), 1)
    (most,) = numbers(TEXT, r"zeros at most ([\d.e-]+) nats")
    assert most == float(f"{max(of_contexts(cells, zero, 'kld_mean')):.1g}")
    beyond = [of_contexts(cells, name, "kld_mean", low=2049) for name in ("rope-minus-one", stale)]
    told = numbers(TEXT, r"\(P1\), ([\d.]+) to ([\d.]+) times as much as stale slots")
    assert told == rounded([a / b for a, b in zip(*beyond, strict=True)], 2)
    zeros, shifted = (of_contexts(cells, name, "kld_mean", model="smollm2") for name in (zero, "rope-minus-one"))
    told = numbers(TEXT, r"cost it ([\d.]+) to ([\d.]+) nats and wrong positions ([\d.]+) to ([\d.]+)")
    assert told == [*rounded(zeros, 2), *rounded(shifted, 1)]
    errors = [m["logit_error"].value for (_, name, _), m in cells.items() if name == zero and "logit_error" in m]
    assert min(errors) > 1e-4
    log = text_of("experiments/LOG.md")
    percent, nats = numbers(log, r"move a logit by (\d+)% of the largest at 128 tokens, and cost ([\d.e-]+) nats")
    assert percent == round(100 * cells["reference", zero, 128]["logit_error"].value)
    assert nats == most
    assert numbers(log, r"\*\*Zeros in unread slots cost SmolLM2 ([\d.]+) to ([\d.]+) nats") == rounded(zeros, 2)


def test_tables_and_words_are_those_of_the_experiment():
    """Rows of the finding are rows of claims.md; what it says of measures stands in fingerprint.md."""
    folder = ROOT / "results/quality-degradation"
    readme = (ROOT / "experiments/quality-degradation/README.md").read_text()
    finding = readme.split("\n## Finding\n")[1].split("\n### ")[0]
    quoted = [line for line in finding.splitlines() if line.startswith("|")]
    assert len(quoted) > 10
    assert set(quoted) <= set((folder / "claims.md").read_text().splitlines())
    table = (folder / "fingerprint.md").read_text().split("\n## ")[1]
    rows = {cells[1]: cells[2:] for cells in (re.split(r" *\| *", line.strip("| ")) for line in table.splitlines())
            if len(cells) > 3}  # fmt: skip
    seen = {name: dict(zip(rows["fault"], row, strict=True)) for name, row in rows.items()}
    contexts = "512, 1024, 2047, 2048, 2049, 4096, 8192"
    for fault in ("block-granular-length/stale", "rope-minus-one"):
        assert (seen[fault]["top-5"], seen[fault]["top-10"]) == ("128", "128")
        assert "?" in seen[fault]["perplexity"]
    assert "surely more at three of seven contexts" in TEXT
    assert len(seen["double-count"]["KLD"].split("only")[0].split(",")) == 3
    for measure in ("perplexity", "top-1", "top-5", "top-10"):
        assert seen["double-count"][measure] == f"- ? {contexts}"
    blind = [name for name, row in seen.items() if row["log-sum-exp"] == "-" and not name.startswith("none")]
    assert blind == ["warp-max/32", "warp-sum/32", "rope-minus-one"]  # the first two are no faults
    assert "less at 7 of 8 contexts and more at none" in TEXT
    assert "less at 7 of 8 contexts, more at 0" in (folder / "claims.md").read_text()


def test_what_parts_of_a_step_come_to():
    shares = []
    for record in load_records(ROOT / "results/million"):
        rows = {row["part"]: row["median_ms"] for row in record.tables.get("breakdown", [])}
        if rows:
            shares.append(100 * rows[SUM] / rows[WHOLE])
    told = numbers(text_of("experiments/LOG.md"), r"parts alone come to (\d+)% to (\d+)% of a step")
    assert told == [round(min(shares)), round(max(shares))]


def test_what_five_placements_say():
    """The LOG's figures of all parts, and of exact pages beside torch."""
    times = {}
    for record in load_records(ROOT / "results/serving"):
        if record.kind == "serving" and record.config["model"].endswith("of 128"):
            (row,) = [row for row in record.tables["parts"] if row["parts"] == "all"]
            times[record.config["bits"], record.config["context"]] = round(row["times"], 2)
    log = text_of("experiments/LOG.md")
    told = numbers(
        log, r"order each time, have ([\d.]+) and ([\d.]+) \(`experiments/serving`\), and ([\d.]+) and ([\d.]+) at"
    )
    assert told == [times[bits, context] for bits in (2, 4) for context in (4096, 32768)]
    every = race_rows(load_records(ROOT / "results/incremental-decode"))
    rows = [row for row in every if (row["way"], row["device"]) == ("split", "cpu")]
    slower = [round(row["times_sdpa"], 1) for row in rows]
    assert numbers(log, r"exact vectors is ([\d.]+) to ([\d.]+) times as slow") == [min(slower), max(slower)]
