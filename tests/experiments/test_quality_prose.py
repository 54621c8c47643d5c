"""Figures in the prose of experiments/quality and of README.md on the real model are those of the records."""

import re

import pytest
from prose import ROOT, numbers, text_of

from pqkv.record import load_records

QUALITY, README = text_of("experiments/quality/README.md"), text_of("README.md")


@pytest.fixture(scope="module")
def cells():
    """SmolLM2's, by (text, recipe, mode, exact first tokens, context, whole bits, digest of the text)."""
    found = {}
    for record in load_records(ROOT / "results/quality"):
        c = record.config
        if c["model"] == "smollm2" and record.kind == "eval" and c.get("bits") and record.status == "ok":
            sinks = c.get("coded_sinks") or 0
            key = (c["data"].split(".")[0], c.get("recipe", "product"), c["mode"], sinks, c["context"], int(c["bits"]))
            found[*key, c["data_sha256"]] = record.metrics  # each Python has a standard library of its own
    return found


def spread(cells, metric, text, recipe, mode, sinks, bits, contexts=None):
    own = [
        m[metric].value
        for key, m in cells.items()
        if key[:4] == (text, recipe, mode, sinks) and key[5] == bits and (contexts is None or key[4] in contexts)
    ]
    assert own
    return [min(own), max(own)]


def test_how_little_a_short_context_shrinks(cells):
    bits, _ = spread(cells, "effective_bits", "wikitext2-test", "pqkv", "exact-schedule", 0, 4, (512,))
    assert numbers(text_of("docs/limits.md"), r"4 bits take ([\d.]+) an element with float32 exact parts") == [
        round(bits, 1)
    ]


def change(pair, digits=1):
    return [round(100 * (value - 1), digits) for value in pair]


def test_the_bundled_model_with_the_same_recipe():
    found = {}
    for record in load_records(ROOT / "results/quality"):
        c = record.config
        if (c["model"], c["data"], c["mode"], c["bits"] // 1) == (
            "reference",
            "wikitext2-test.txt",
            "exact-schedule",
            4,
        ):
            found[c.get("recipe", "product"), c["context"]] = record.metrics
    changes = [m["perplexity_ratio"].value for (recipe, _), m in found.items() if recipe == "pqkv"]
    assert numbers(QUALITY, r"Four bits cost it ([\d.]+)% to ([\d.]+)% of perplexity") == change(
        [min(changes), max(changes)], 2
    )
    times = found["pqkv", 4096]["kld_mean"].value / found["product", 4096]["kld_mean"].value
    assert numbers(QUALITY, r"recipe pqkv loses ([\d.]+) of what the product codes") == [round(times, 2)]


def test_what_arithmetic_alone_does(cells):
    floors = {}
    for r in load_records(ROOT / "results/quality"):
        c = r.config
        if c.get("floor") and c["model"] == "smollm2":
            floors[c["floor"], c["data"].split(".")[0], c["context"]] = r.metrics["kld_mean"].value
    found = [kld for (floor, *_), kld in floors.items() if floor == "bfloat16 arithmetic"]
    assert len(found) == 10
    assert numbers(QUALITY, r"float32 loses ([\d.]+) to ([\d.]+) nats at every") == [
        float(f"{kld:.2g}") for kld in (min(found), max(found))
    ]
    four = {
        (key[0], key[4]): m["kld_mean"].value
        for key, m in cells.items()
        if key[1:4] == ("pqkv", "exact-schedule", 0) and key[5] == 4
    }
    share = {place: floors["bfloat16 arithmetic", *place] / kld for place, kld in four.items()}
    assert len(share) == 10
    assert min(share["wikitext2-test", 512], share["stdlib", 512]) > 0.8  # "most of"
    assert share["wikitext2-test", 8192] == pytest.approx(1 / 3, abs=0.1)
    assert 0.5 < share["stdlib", 8192] < 0.65
    alone = [kld / floors["bfloat16 arithmetic", *place] for (floor, *place), kld in floors.items() if "cache" in floor]
    assert max(alone) < 0.06


def test_what_the_default_costs_in_the_schedule(cells):
    def ratio(text, bits, contexts=None):
        return change(spread(cells, "perplexity_ratio", text, "pqkv", "exact-schedule", 0, bits, contexts))

    def kld(recipe, bits):
        return [
            float(f"{value:.2g}")
            for value in spread(
                cells, "kld_mean", "wikitext2-test", recipe, "all-coded", 0, bits, (512, 1024, 2048, 4096)
            )
        ]

    four, three, two = (ratio("wikitext2-test", bits) for bits in (4, 3, 2))
    assert numbers(QUALITY, r"costs ([\d.]+)% to ([\d.]+)% of perplexity at 4 bits") == four
    assert (
        numbers(QUALITY, r"bits, ([\d.]+)% to ([\d.]+)% at 3 and ([\d.]+)% to ([\d.]+)% at 2 in the schedule")
        == three + two
    )
    own = [ratio("stdlib", bits)[1] for bits in (4, 3, 2)]
    assert numbers(QUALITY, r"on source code at most ([\d.]+)%, ([\d.]+)% and ([\d.]+)%") == own
    sinks = spread(cells, "perplexity_ratio", "wikitext2-test", "pqkv", "all-coded", 4, 4)
    assert numbers(QUALITY, r"all but four tokens coded it costs ([\d.]+)% to ([\d.]+)% at 4 bits") == change(sinks)
    assert numbers(QUALITY, r"4 bits\*\*: ([\d.]+) to ([\d.]+) nats beside ([\d.]+) to ([\d.]+)") == kld(
        "pqkv", 4
    ) + kld("product", 4)
    below = (kld("pqkv", bits)[1] < kld("product", bits)[0] for bits in (3, 2))
    assert all(below)
    in_readme = [ratio("wikitext2-test", bits, (512, 1024, 2048)) for bits in (4, 3, 2)]
    assert numbers(
        README, r"four bits cost ([\d.]+)% to ([\d.]+)% of perplexity and three ([\d.]+)% to ([\d.]+)%; two cost"
    ) == (in_readme[0] + in_readme[1])
    assert numbers(README, r"two cost ([\d.]+)% to ([\d.]+)%") == in_readme[2]
    alone = {recipe: kld(recipe, 4)[1] for recipe in ("pqkv", "product")}
    assert numbers(README, r"no token exact, 4 bits lose ([\d.]+) nats, product codes ([\d.]+)") == [*alone.values()]


def test_token_by_token_beside_the_schedule(cells):
    ratios, times = {4: [], 2: []}, []
    for (text, recipe, mode, _, context, bits, _), m in cells.items():
        if (recipe, mode) == ("pqkv", "token"):
            ratios[bits].append(m["perplexity_ratio"].value)
            (schedule,) = (
                other["kld_mean"].value
                for key, other in cells.items()
                if key[:6] == (text, "pqkv", "exact-schedule", 0, context, bits)
            )
            times.append(m["kld_mean"].value / schedule)
    assert (len(ratios[4]), len(ratios[2])) == (4, 4)
    told = numbers(QUALITY, r"its KLD is ([\d.]+) to ([\d.]+) times the schedule's mean")
    assert told == [round(min(times), 2), round(max(times), 2)]
    assert max(ratios[4]) < 1.005
    assert max(ratios[2]) < 1.07


def test_codebooks_learnt_anew():
    def key(record):
        c = record.config
        return c["data"], c["context"], c["windows"], c["bits"], c["mode"], c.get("coded_sinks")

    anew = {key(r): r for r in load_records(ROOT / "results/quality-anew")}
    before = {
        key(r): r
        for r in load_records(ROOT / "results/quality")
        if key(r) in anew and r.config["model"] == "smollm2" and r.config.get("recipe") == "pqkv"
    }
    assert len(anew) == len(before) == 9
    assert all(r.env["gpus"] and r.config["codebooks"] != before[k].config["codebooks"] for k, r in anew.items())
    times = [r.metrics["kld_mean"].value / before[k].metrics["kld_mean"].value for k, r in anew.items()]
    assert numbers(QUALITY, r"those lose ([\d.]+) to ([\d.]+) times") == [round(min(times), 2), round(max(times), 2)]


def test_what_conversations_lose():
    found = {record.config["mode"]: record for record in load_records(ROOT / "results/quality-chat")}
    for mode, sinks, pattern in (
        ("exact-schedule", None, r"cost {ppl} of perplexity, at [\d.]+% top-1 and {kld} nats \["),
        ("all-coded", 4, r"all coded but four {kld} nats and {ppl}"),
    ):
        c, m = found[mode].config, found[mode].metrics
        assert c["chat"]
        assert (c["bits"] // 1, c["context"], c["windows"], c.get("coded_sinks")) == (4, 1024, 8, sinks)
        ppl = [f"{100 * (value - 1):.2f}" for value in astuple(m["perplexity_ratio"])]
        kld = f"{m['kld_mean'].value:.2g}"
        told = pattern.format(ppl=r"\+{}% \[\+{}%, \+{}%\]".format(*map(re.escape, ppl)), kld=re.escape(kld))
        assert re.search(told, QUALITY), told
        plain = {key: c[key] for key in ("model", "data", "recipe", "mode", "context", "bits")} | {"windows": 16}
        (beside,) = (
            r for r in load_records(ROOT / "results/quality")
            if plain.items() <= r.config.items() and r.config.get("coded_sinks") == sinks
        )  # fmt: skip
        later = beside.tables["by_position"][-1]
        assert later["start"] == 512
        (lost,) = numbers(QUALITY, r"from position 512 on\) lose ([\d.]+)" if sinks is None else
                          r"from position 512 on\) lose [\d.]+ and ([\d.]+) nats")  # fmt: skip
        assert lost == float(f"{later['kld_mean']:.2g}")
    m = found["exact-schedule"].metrics
    told = numbers(QUALITY, r"at ([\d.]+)% top-1 and [\d.]+ nats \[([\d.]+), ([\d.]+)\]")
    assert told == [
        round(100 * m["agreement_at_1"].value, 1),
        round(m["kld_mean"].low, 4),
        round(m["kld_mean"].high, 4),
    ]


def astuple(metric):
    return metric.value, metric.low, metric.high


def test_where_drawn_texts_part():
    text = text_of("experiments/generation/README.md")
    drawn = {}
    for r in load_records(ROOT / "results/generation"):
        if r.config["mode"] == "drawn":
            drawn[r.config["cache"]] = r.samples["token_ids"]

    def same(a, b):
        return next(i for i, pair in enumerate(zip(drawn[a], drawn[b], strict=True)) if pair[0] != pair[1])

    first = {same("DynamicCache", "4 bits"), same("DynamicCache", "2 bits")}
    (told,) = numbers(text, r"at the same word, their (\d+)th")
    assert first == {told - 1}
    assert numbers(text, r"each other at the (\d+)th") == [same("4 bits", "2 bits") + 1]


def test_transformers_writes_the_same_tokens():
    (record,) = (
        r
        for r in load_records(ROOT / "results/checks")
        if (r.config.get("check"), r.config.get("model")) == ("generate_through_transformers", "smollm2")
    )
    rows = {row["cache"]: row for row in record.tables["generate_through_transformers"]}
    assert set(rows) == {"DynamicCache", "4 bits", "2 bits"}
    assert all(row["same"] == row["tokens"] for row in rows.values())
    assert all((row["coded_columns"] > 0) == (name != "DynamicCache") for name, row in rows.items())
    told = numbers(text_of("experiments/generation/README.md"), r"writes the same ([\d,]+)\s+tokens as `pqkv generate`")
    assert told == [rows["4 bits"]["tokens"]]
