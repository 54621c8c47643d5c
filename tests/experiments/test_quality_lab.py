"""Figures in the prose of experiments/quality-lab are those of its records."""

import re
from pathlib import Path

import pytest
from prose import numbers, script, text_of

from pqkv.lab.bound import bound_losses, modelled_kld
from pqkv.lab.recommend import Wanted, recipes, recommended
from pqkv.record import load_records

ROOT = Path(__file__).parents[2]
TEXT = text_of("experiments/quality-lab/README.md")


@pytest.fixture(scope="module")
def tables():
    return script("experiments/quality-lab/tables.py")


@pytest.fixture(scope="module")
def rows(tables):
    return {row.method: row for row in tables.found("wikitext2-test.txt", 1024).rows}


@pytest.fixture(scope="module")
def elsewhere(tables):
    """Groups on source code, on the novel and on the bundled model."""
    places = ("stdlib", "texts"), ("bleak_house.txt", "texts"), ("wikitext2-test.txt", "reference")
    return [tables.found(text, 1024, lab, tables.RESULTS / lab) for text, lab in places]


def said(pattern):
    return numbers(TEXT, pattern)


RATIOS = [
    (r"predictions ours loses ([\d.]+) of the best peer", "pqkv 4, predicted", "AQUA-KV 4"),
    (r"of its size at 4 bits, ([\d.]+) at 3", "pqkv 3, predicted", "AQUA-KV 3"),
    (r"([\d.]+) at 2\*\* \(AQUA-KV", "pqkv 2, predicted", "AQUA-KV 2"),
    (r"ours loses ([\d.]+) of today's codebooks", "pqkv 4", "codebooks 4"),
    (r"underneath, loses ([\d.]+) of ours at 4 bits", "AQUA-KV 4", "pqkv 4"),
    (r"of ours at 4 bits, ([\d.]+) at 3", "AQUA-KV 3", "pqkv 3"),
    (r"at 3, ([\d.]+) at 2\.", "AQUA-KV 2", "pqkv 2"),
    (r"where it loses ([\d.]+) times what CQ does at 4", "pqkv 2, predicted", "CQ 2c8b"),
    (r"nearest relative, lose ([\d.]+) times ours", "CQ 2c8b", "pqkv 4"),
    (r"for all heads: ([\d.]+) times", "MILLION 4", "pqkv 4"),
    (r"is close\*\* \(([\d.]+) times\)", "KIVI 4", "pqkv 4"),
    (r"it loses ([\d.]+) times what our 3 bits do", "KIVI 2", "pqkv 3"),
]


@pytest.mark.parametrize(("pattern", "method", "over"), RATIOS)
def test_ratios_of_losses(rows, pattern, method, over):
    (number,) = said(pattern)
    digits = len(str(number).partition(".")[2]) if number < 10 and number % 1 else 0
    assert number == pytest.approx(rows[method].kld.value / rows[over].kld.value, abs=0.51 * 10**-digits)


def test_ranges_and_bars(rows):
    ours = rows["pqkv 4"]
    low, high = said(r"nvfp4 and mxfp4 lose (\d+) to (\d+) times")
    found = [rows[name].kld.value / ours.kld.value for name in ("int4", "q4_0", "nvfp4", "mxfp4")]
    assert (round(min(found)), round(max(found))) == (low, high)
    assert all(rows[name].value("code_bits") > ours.value("code_bits") for name in ("int4", "q4_0", "nvfp4", "mxfp4"))
    assert said(r"perplexity at 4 bits \+([\d.]+)%, bar") == [
        pytest.approx(100 * (ours.value("perplexity_ratio") - 1), abs=0.006)
    ]
    assert said(r"is not\*\* \(([\d.]+), bar 0\.16;") == [pytest.approx(rows["pqkv 2"].kld.value, abs=6e-4)]
    for name, bar in (("pqkv 4, predicted", 0.008), ("pqkv 3, predicted", 0.03), ("pqkv 2, predicted", 0.1)):
        assert rows[name].kld.high <= bar
    assert said(r"perplexity \+([\d.]+)% at 4 bits, \+([\d.]+)% at 2\.13 bits") == [
        pytest.approx(100 * (rows[name].value("perplexity_ratio") - 1), abs=0.006)
        for name in ("pqkv 4, predicted", "pqkv 2, predicted")
    ]
    assert ours.kld.value <= 0.012
    assert rows["pqkv 3"].kld.value <= 0.045
    assert rows["pqkv 2"].kld.value > 0.16


def test_who_stands_in_the_way(rows):
    """Less than every peer up to 5.25 bits but one; at 3 bits two."""

    def better(name, upto):
        bits = int(rows[name].value("code_bits"))
        peers = [m for m in rows if not m.startswith(("pqkv", "codebooks"))]
        return {m for m in peers if bits <= rows[m].value("code_bits") < upto
                and rows[m].kld.value < rows[name].kld.value}  # fmt: skip

    assert better("pqkv 4", 5.25) == {"AQUA-KV 4"}
    assert better("pqkv 3", 4.25) == {"AQUA-KV 3", "AQUA-KV 4", "CQ 2c8b"}
    assert better("pqkv 2", 3.25) == {"AQUA-KV 2", "AQUA-KV 3"}
    assert 0.4 < rows["q4_0 rotated"].kld.value / rows["q4_0"].kld.value < 0.55
    assert rows["fp8"].kld.value / rows["pqkv 4"].kld.value == pytest.approx(2 / 3, abs=0.02)
    assert rows["q8_0"].kld.value / rows["fp8"].kld.value == pytest.approx(1 / 20, abs=0.01)


def test_what_dealing_out_bits_gains(rows):
    told = said(r"gain (\d+)% at 4 bits, (\d+)% at 3 and (\d+)% at 2")
    gains = [1 - rows[f"pqkv {b}, dealt"].kld.value / rows[f"pqkv {b}"].kld.value for b in (4, 3, 2)]
    assert told == [pytest.approx(100 * gain, abs=0.51) for gain in gains]
    more = rows["pqkv 2, dealt"].value("code_bits") - rows["pqkv 2"].value("code_bits")
    assert said(r"where they are ([\d.]+) bits more") == [pytest.approx(more, abs=0.006)]
    assert said(r"; ([\d.]+) with bits dealt out") == [pytest.approx(rows["pqkv 2, dealt"].kld.value, abs=6e-4)]


ABLATION = {  # what the prose says of a changed option: grid, option, digits
    r"without the turning mean they lose ([\d.]+) times": ("keys", "mean=none", 2),
    r"without the queries' metric ([\d.]+),": ("keys", "metric=none", 2),
    r"without balanced groups ([\d.]+)\.": ("keys", "grouping=adjacent", 1),
    r"\(`stages=2`\) lose ([\d.]+) of what two codes": ("keys", "stages=2", 2),
    r"sub-vectors of unequal length ([\d.]+): a loud": ("keys", "grouping=unequal", 2),
    r"alone halves the loss\*\* \(([\d.]+)\)": ("keys alone", "rope=pre", 2),
    r"values want a gain and nothing else\*\*: ([\d.]+) of the loss": ("values alone", "gain=true", 2),
}


def changes():
    """Loss over that of the base by (grid, option), of the table in the README."""
    found, grid = {}, ""
    titles = {"Keys (": "keys", "Keys:": "keys alone", "Values (": "values", "Values: the": "values learnt",
              "Values: product": "values alone"}  # fmt: skip
    for line in (ROOT / "experiments/quality-lab/README.md").read_text().splitlines():
        grid = next((name for start, name in titles.items() if line.startswith(start)), grid)
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 4 and "=" in cells[0]:
            found[grid, cells[0]] = float(cells[2])
    return found


@pytest.mark.parametrize("pattern", ABLATION)
def test_what_the_ablation_is_said_to_show(pattern):
    grid, option, digits = ABLATION[pattern]
    found = re.search(pattern, TEXT, re.IGNORECASE)
    assert found, pattern
    assert float(found[1]) == round(changes()[grid, option], digits)


def test_how_much_there_is_to_gain(tables, rows):
    (record,) = load_records(tables.RESULTS / "bound")
    losses, modelled = bound_losses(record), modelled_kld(bound_losses(record))
    times = {side: {x.bits: round(x.error / x.bound, 1) for x in own} for side, own in losses.items()}
    assert said(r"\*\*Keys err ([\d.]+) to ([\d.]+) times, values ([\d.]+) to ([\d.]+) times what the bound") == [
        pick(times[side].values()) for side in ("keys", "values") for pick in (min, max)
    ]
    ours = sum(loss.kld for own in losses.values() for loss in own if loss.bits == 4)
    assert modelled[4] / ours == pytest.approx(1 / 3, abs=0.05)  # "a third of our loss"
    (four,) = (row for row in record.tables["losses"] if (row["side"], row["bits"]) == ("keys", 4))
    assert said(r"could reach ([\d.]+) of our keys' error") == [round(four["one_gaussian"] / four["error"], 2)]
    assert said(r"with them 4 bits lose ([\d.]+) nats on WikiText-2 test") == [
        round(rows["pqkv 4, predicted"].kld.value, 5)
    ]
    log = text_of("experiments/LOG.md")
    told = numbers(log, r"ours errs ([\d.]+), ([\d.]+) and ([\d.]+) times what it allows at 4, 3 and 2 bits, values "
                   r"([\d.]+), ([\d.]+) and ([\d.]+) times")  # fmt: skip
    assert told == [times[side][bits] for side in ("keys", "values") for bits in (4, 3, 2)]
    assert numbers(log, r"loss would be left \(([\d.]+) nats") == [round(modelled[4], 4)]


def test_what_serving_would_save():
    of = changes()
    assert said(r"16 turning pairs (\d+)%, 8 pairs (\d+)%, turning every 16 tokens (\d+)%") == [
        round(100 * (of["keys", option] - 1)) for option in ("turning_pairs=16", "turning_pairs=8", "turning_every=16")
    ]
    assert of["keys", "centroids=int8"] <= 1
    assert round(of["values", "transform=none"]) == 15
    assert round(of["keys", "transform=hadamard"]) == 4


def test_what_predictions_take(rows):
    width = 3 * 64  # channels of all KV heads
    per_token = width * (2 * width) + width * (3 * width)  # keys see both sides underneath, values their own keys too
    assert said(r"\(([\d,]+) a token and layer") == [per_token]
    assert said(r"takes (\d+) times the multiply-adds of attention") == [per_token // (2 * 64 * 9)]
    fixed = []
    for bits in (4, 3, 2):
        a, b = rows[f"pqkv {bits}, predicted"].record.tables["memory"][-2:]
        each = (b["cache_bytes"] - a["cache_bytes"]) / (b["tokens"] - a["tokens"])
        fixed.append((a["cache_bytes"] - each * a["tokens"]) / 1e6)
    assert said(r"are (\d+) to (\d+) MB in float32") == [round(min(fixed)), round(max(fixed))]


def test_what_is_said_of_other_texts_and_of_the_bundled_model(rows, elsewhere):
    def over(group, method, other, digits=2):
        kld = {row.method: row.kld.value for row in group.rows}
        return round(kld[method] / kld[other], digits)

    code, novel, bundled = elsewhere
    lost = [next(r.kld.value for r in g.rows if r.method == "pqkv 4") / rows["pqkv 4"].kld.value for g in (code, novel)]
    assert said(r"novel ours loses ([\d.]+) and ([\d.]+) times") == [round(x, 1) for x in lost]
    assert said(r"and so ([\d.]+) and ([\d.]+) of ours there") == [over(g, "KIVI 4", "pqkv 4") for g in (code, novel)]
    for group in (code, novel):
        gap = next(row.difference for row in group.rows if row.method == "KIVI 4")
        assert gap.low < 0 < gap.high
    assert said(r"at 2 bits ([\d.]+) and ([\d.]+) of AQUA-KV") == [
        over(g, "pqkv 2, predicted", "AQUA-KV 2") for g in (code, novel)
    ]
    assert said(r"at 4 bits on code ([\d.]+), not") == [over(code, "pqkv 4, predicted", "AQUA-KV 4")]
    assert said(r"codebooks lose ([\d.]+) of the recipe there at 4 bits and ([\d.]+) at 2") == [
        over(bundled, f"codebooks {bits}", f"pqkv {bits}") for bits in (4, 2)
    ]
    assert said(r"AQUA-KV ([\d.]+) of ours with predictions at 4 bits") == [
        over(bundled, "AQUA-KV 4", "pqkv 4, predicted")
    ]
    assert said(r"int4 loses ([\d.]+) times ours, where it is (\d+) times") == [
        over(bundled, "int4", "pqkv 4", 1), round(rows["int4"].kld.value / rows["pqkv 4"].kld.value)
    ]  # fmt: skip
    assert said(r"hence ([\d.]+) bits") == [
        round(next(row.value("code_bits") for row in bundled.rows if row.method == "pqkv 2, predicted"), 2)
    ]


def test_what_the_page_on_choosing_says(rows):
    text = text_of("docs/how-to/choose.md")
    found = re.search(
        r"change nothing\), lose ([\d.]+) nats at ([\d.]+) bits, product codes ([\d.]+) at 4, "
        r"KIVI ([\d.]+) at 5, int4 ([\d.]+) at 4\.5; .* serves, ([\d.]+) at 4\.06 and ([\d.]+) at 2\.13 bits", text
    )  # fmt: skip
    assert found
    names = "pqkv 4", "codebooks 4", "KIVI 4", "int4", "pqkv 4, predicted", "pqkv 2, predicted"
    figures = [figure for i, figure in enumerate(found.groups()) if i != 1]
    for name, figure in zip(names, figures, strict=True):
        digits = len(figure.partition(".")[2])
        assert float(figure) == round(rows[name].kld.value, digits)
    assert float(found[2]) == round(rows["pqkv 4"].value("code_bits"), 2)
    assert len(rows) == 35


def test_the_outcome_is_that_of_the_records(tables, tmp_path):
    written = tables.outcome(into=tmp_path).splitlines()
    assert written[:2] == ["methods.csv", "methods.md"]
    for name in written[:2]:
        assert (tmp_path / name).read_text() == (tables.RESULTS / name).read_text()
    assert all((tables.RESULTS / name).exists() for name in written)


@pytest.mark.parametrize("readme", ["docs/how-to/choose.md", "experiments/quality-lab/README.md"])
def test_recommendations_that_are_asked_for_as_an_example_are_given(tables, readme):
    found = re.search(r"pqkv recommend --model smollm2 --max-(ppl|kld) ([\d.]+)(%?)", text_of(readme))
    bound = float(found[2]) / (100 if found[3] else 1)
    records = load_records(tables.RESULTS)
    (fingerprint,) = {r.config["model_weights"] for r in records if r.kind == "eval" and r.config["model"] == "smollm2"}
    measured = recipes(records, fingerprint, "all-coded, 4 sinks")
    assert recommended(measured, Wanted(**{f"max_{found[1]}": bound})) is not None


def test_what_is_said_of_4096_tokens(tables, rows):
    longer = {row.method: row for row in tables.found("wikitext2-test.txt", 4096).rows}
    kld = {name: row.kld.value for name, row in longer.items()}
    three = r"([\d.]+), ([\d.]+) and ([\d.]+)"
    given = said(rf"as at 1,024\*\*: {three} nats, with predictions {three}\.")
    names = [f"pqkv {bits}{more}" for more in ("", ", predicted") for bits in (4, 3, 2)]
    assert given == [float(f"{kld[name]:.3g}") for name in names]
    assert [kld[name] <= bar for name, bar in zip(names, (0.012, 0.045, 0.16) * 2, strict=True)] == [
        True, True, False, True, True, True
    ]  # fmt: skip
    peers = {name for name in rows if not name.startswith(tables.OURS)}
    assert peers <= set(kld)

    def below(name):
        bits = int(longer[name].value("code_bits"))
        near = (m for m in peers if bits <= longer[m].value("code_bits") < bits + tables.WIDER)
        return {m for m in near if kld[m] < kld[name]}

    assert [below(name) for name in names[:4]] == [
        {"AQUA-KV 4"}, {"AQUA-KV 3", "AQUA-KV 4", "CQ 2c8b"}, {"AQUA-KV 2", "AQUA-KV 3"}, set()
    ]  # fmt: skip
    assert said(r"alone below it at 4 bits \(([\d.]+) of its loss") == [round(kld["AQUA-KV 4"] / kld["pqkv 4"], 2)]
    times = {name: kld[name] / rows[name].kld.value for name in kld}
    told = said(r"scale a layer ([\d.]+) times what it loses at 1,024 tokens, mxfp4's powers of two ([\d.]+) times, "
                r"MILLION's one codebook ([\d.]+) times")  # fmt: skip
    worst = ("fp8", "mxfp4", "MILLION 4")
    assert told == [round(times[name], 1) for name in worst]
    others = [round(t, 1) for name, t in times.items() if name not in worst]
    assert said(r"all others ([\d.]+) to ([\d.]+) times") == [min(others), max(others)]
    assert kld["fp8"] > kld["pqkv 4"] > rows["fp8"].kld.value
    again = {}
    for record in load_records(ROOT / "results/device-check"):
        again[record.config["codec"]["keys"]["codec"], record.config["device"]] = record.metrics["kld_mean"].value
    assert again["composed", "cuda"] == pytest.approx(kld["pqkv 4"], rel=0.005)
    assert said(r"on a processor fp8 loses ([\d.]+) nats and mxfp4 ([\d.]+) on the") == [
        round(again["fp8", "cpu"], 4), round(again["mxfp4", "cpu"], 3)
    ]  # fmt: skip
    longest = {row.method: row.kld.value for row in tables.found("wikitext2-test.txt", 8192).rows}
    for who, pattern in (
        ("pqkv", r"At 8,192 ours loses ([\d.]+) to ([\d.]+)"),
        ("AQUA", r"AQUA-KV ([\d.]+) to ([\d.]+) t"),
    ):
        own = [longest[m] / rows[m].kld.value for m in longest if m.startswith(who)]
        assert said(pattern) == [round(min(own), 2), round(max(own), 2)]


def test_what_is_said_of_recall(tables):
    found = {
        r.config["codec"]["keys"]["codec"] + f"{r.config['bits']:.0f}": r for r in load_records(ROOT / "results/recall")
    }
    assert len(found) == 6
    missed = {name: r.metrics["recall"] for name, r in found.items() if r.metrics["recall"].value < 1}
    (least,) = missed.values()
    assert set(missed) == {"aqua2"}
    assert (least.n * (1 - least.value), f"{least.low:.0%} to {least.high:.0%}") == (
        pytest.approx(1), re.search(r"of 20 \(interval ([^)]*)\)", TEXT)[1],
    )  # fmt: skip
    assert all(r.metrics["recall_exact"].value == 1 and r.metrics["recall_control"].value == 0 for r in found.values())


def test_what_is_said_of_other_exact_tokens(tables, rows):
    usual, none = (
        {row.method: row.kld.value for row in tables.found("wikitext2-test.txt", 1024, "exact", folder, mode).rows}
        for folder, mode in ((tables.RESULTS / "exact", "exact-schedule"), (tables.RESULTS / "exact", "all-coded"))
    )
    assert said(r"at 4 bits loses ([\d.]+) of what AQUA-KV does and ([\d.]+) of KIVI's") == [
        round(usual["pqkv 4"] / usual[name], 2) for name in ("AQUA-KV 4", "KIVI 4")
    ]
    assert said(r"at 2 bits ([\d.]+) of AQUA-KV, whose") == [round(usual["pqkv 2"] / usual["AQUA-KV 2"], 2)]
    assert said(r"2\.13 bits lose ([\d.]+) times what 4\.06 bits") == [
        round(usual["pqkv 2, predicted"] / usual["pqkv 4"], 1)
    ]
    lost, times = said(r"ours loses ([\d.]+) nats at 4 bits, (\d+) times as much")
    assert lost == round(none["pqkv 4"], 2)
    assert times == pytest.approx(none["pqkv 4"] / rows["pqkv 4"].kld.value, rel=0.05)
    more = [round(none[name] / rows[name].kld.value, 1) for name in ("KIVI 4", "fp8")]
    assert more == said(r"\(KIVI, fp8\) lose ([\d.]+) and ([\d.]+) times")
    assert round(none["AQUA-KV 4"] / rows["AQUA-KV 4"].kld.value) == 4
    compared = ("pqkv 4", "pqkv 3", "KIVI 4", "AQUA-KV 4", "fp8")
    shares = [usual[name] / rows[name].kld.value for name in compared]
    assert (round(min(shares), 2), round(max(shares), 2)) == tuple(said(r"they lose ([\d.]+) to ([\d.]+) of the above"))


def test_what_the_log_says_the_bundled_model_had_taught(rows, elsewhere):
    """The table that sets its conclusions beside SmolLM2's."""
    log, of = text_of("experiments/LOG.md"), changes()
    assert numbers(log, r"holds: keys ([\d.]+) times alone, ([\d.]+) times in the recipe; values ([\d.]+) times") == [
        of["keys alone", "grouping=adjacent"], of["keys", "grouping=adjacent"], of["values alone", "grouping=adjacent"]
    ]  # fmt: skip
    assert numbers(log, r"more so: ([\d.]+) of it") == [of["keys alone", "metric=diagonal"]]
    assert numbers(log, r"only alone \(principal axes ([\d.]+)") == [of["keys alone", "transform=klt"]]
    assert of["keys", "transform=none"] == pytest.approx(4 / 3, abs=0.02)  # "worth a third"
    assert numbers(log, r"keys ([\d.]+), in the recipe's metric ([\d.]+) \(.* values ([\d.]+) \(it holds") == [
        of["keys alone", "transform=opq"], of["keys", "transform=opq"], of["values alone", "transform=opq"]
    ]  # fmt: skip
    *_, bundled = elsewhere
    small = {row.method: row.kld.value for row in bundled.rows}
    told = numbers(log, r"lose ([\d.]+) of recipe pqkv, int4 ([\d.]+) times .* lose ([\d.]+) times as much, int4 (\d+)")
    assert told == [
        round(small["codebooks 4"] / small["pqkv 4"], 2), round(small["int4"] / small["pqkv 4"], 1),
        round(rows["codebooks 4"].kld.value / rows["pqkv 4"].kld.value, 1),
        round(rows["int4"].kld.value / rows["pqkv 4"].kld.value),
    ]  # fmt: skip
