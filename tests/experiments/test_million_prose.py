"""Figures of experiments/million/README.md are those of its claims: one table word by word, the other rounded."""

import csv
import re

import pytest
from prose import ROOT, numbers, text_of

from pqkv.record import load_records

README = ROOT / "experiments/million/README.md"
TEXT = text_of("experiments/million/README.md")
RESULTS = ROOT / "results/million"
QUOTED = "### By count, by listing and in one run"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def rows(section):
    """Lines of the tables of a section, without their heads."""
    lines = section.splitlines()
    return [
        line
        for i, line in enumerate(lines)
        if line.startswith("| ") and not "".join(lines[i + 1 : i + 2]).startswith("|--")
    ]


def claims():
    with (RESULTS / "claims.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def values(text):
    return [(float(n.replace(",", "")), len(n.partition(".")[2])) for n in NUMBER.findall(text)]


FINDING = README.read_text().split("\n## Finding\n")[1].split("\n## ")[0]
SUMMARY = rows(FINDING.split("\n### ")[0])


def test_the_table_by_count_stands_as_it_was_derived():
    quoted = rows(FINDING.split(f"\n{QUOTED}\n")[1].split("\n### ")[0])
    assert len(quoted) > 20
    assert set(quoted) <= set((RESULTS / "claims.md").read_text().splitlines())
    assert {line.split(" | ")[0] for line in quoted} >= {"| a", "| c", "| d", "| e", "| f", "| j"}


@pytest.mark.parametrize("line", SUMMARY, ids=[line[2:50] for line in SUMMARY])
def test_a_figure_of_the_summary_is_one_of_its_part(line):
    """Rounded to the digits that are told; microseconds may be told as milliseconds."""
    part, _, _, ours, _ = (cell.strip() for cell in line.strip("| ").split(" | "))
    known = {v for row in claims() if row["part"] == part for cell in (row["claim"], row["theirs"], row["ours"])
             for v, _ in values(cell)}  # fmt: skip
    for value, digits in values(ours):
        assert any(round(k / unit, digits) == value for k in known for unit in (1, 1000)), (value, ours)


def test_a_figure_that_is_not_there_is_noticed():
    with pytest.raises(AssertionError, match=r"98\.7"):
        test_a_figure_of_the_summary_is_one_of_its_part("| b | memory | 25% | 98.7% | no |")


def test_what_short_contexts_take():
    shares = {(row["claim"], row["model"]): values(row["ours"])[0][0] for row in claims() if row["part"] == "b"}
    (short,) = {v for (claim, _), v in shares.items() if ", ours, 512 tokens" in claim and "llama-2-7b" in claim}
    assert numbers(TEXT, r"at 512 tokens it is ([\d.]+) times the exact cache") == [round(short / 100, 2)]


def test_records_say_what_they_were_measured_of():
    """New figures are of a commit, none of files under way."""
    kinds = {"million-listing", "million-copies", "million-bins", "million-capacity", "million-outliers", "accesses"}
    found = [r for r in load_records(RESULTS) if r.kind in kinds or str(r.config.get("mode")).startswith("paired")]
    assert {record.kind for record in found} >= kinds
    assert not any(record.git["dirty"] for record in found)


def test_what_transposed_pages_take_of_a_processors_time():
    shares = {side: [] for side in ("values", "keys")}
    for row in claims():
        if found := re.match(r"access to (values|keys), .* 32768 tokens", row["claim"]):
            shares[found[1]].append(float(re.search(r"([\d.]+)x", row["ours"])[1]))
    told = numbers(TEXT, r"looks up values in ([\d.]+) to ([\d.]+) and keys in ([\d.]+) to ([\d.]+) of the time")
    assert told == [pick(shares[side]) for side in ("values", "keys") for pick in (min, max)]


def test_what_the_log_says_of_listings_and_bins():
    log = text_of("experiments/LOG.md")
    kinds = {}
    for record in load_records(RESULTS):
        kinds.setdefault(record.kind, []).append(record)
    (listing,), (copies,) = kinds["million-listing"], kinds["million-copies"]
    steps, (pages,) = listing.tables["steps"], listing.tables["pages"]
    told = numbers(log, r"every step of ([\d,]+) ends .* the token counter says ([\d,]+); .* after ([\d,]+) tokens on")
    assert told == [steps[0]["steps"], steps[0]["seen"], pages["lasted"]]
    rows = copies.tables["copies"]
    vector, gather = rows[0], rows[-1]
    told = numbers(
        log, r"take (\d+) sectors a tile each; the gather takes (\d+) times the loads, and stores them in (\d+) times"
    )
    times = [gather[name] / vector[name] for name in ("loads", "store_passes")]
    assert told == [gather["sectors"], *times]
    (longest,) = [r.tables["bins"][0] for r in kinds["million-bins"] if r.config["tokens"] == 32768]
    assert numbers(log, r"([\d.]+) million additions and ([\d,]+) products where decoding takes ([\d.]+) million") == [
        round(longest["additions"] / 1e6, 1), longest["products"], round(longest["decoded_products"] / 1e6, 1),
    ]  # fmt: skip
    errors = [r.tables["bins"][0]["error"] for r in kinds["million-bins"]]
    assert max(errors) <= numbers(log, r"\(float64 agrees to ([\de.-]+)\)")[0]


def test_what_the_log_says_of_a_real_model():
    changes, opq = {}, {}
    for row in claims():
        if found := re.match(r"perplexity change at 4 bits, (\S+) setting, stdlib", row["claim"]):
            changes.setdefault((found[1], row["model"]), []).append(float(re.match(r"([+-][\d.]+)%", row["ours"])[1]))
        if row["claim"] == "OPQ loses less than balanced at 4 bits, stdlib test, 4,096 tokens":
            opq[row["model"]] = float(re.search(r"([\d.]+)x", row["ours"])[1])
    log = text_of("experiments/LOG.md")
    told = numbers(log, r"\| \+([\d.]+)% to \+([\d.]+)%, and ours \+([\d.]+)% to \+([\d.]+)%: the same")
    theirs, ours = changes["MILLION's", "smollm2"], changes["our", "smollm2"]
    assert told == [round(min(theirs), 1), round(max(theirs), 1), min(ours), max(ours)]
    assert max(*ours, *changes["our", "reference"]) < 1 < min(*theirs, *changes["MILLION's", "reference"])
    assert numbers(log, r"at 4 bits OPQ loses ([\d.]+) of balanced") == [opq["reference"]]


def test_what_a_real_model_says_of_opq():
    times = {}
    for row in claims():
        found = re.match(r"(.*) at (\d) bits, stdlib test, 4,096 tokens", row["claim"])
        if found and row["part"] == "h":
            times[found[1], int(found[2]), row["model"]] = float(re.search(r"([\d.]+)x", row["ours"])[1])
    text, log = text_of("experiments/million/README.md"), text_of("experiments/LOG.md")
    both = [times["MILLION with OPQ loses less than MILLION", 2, model] for model in ("smollm2", "reference")]
    told = r"at 2 bits OPQ loses\s+([\d.]+) times what neighbours do on SmolLM2, where the bundled model says ([\d.]+)"
    assert numbers(text, told) == both
    assert numbers(log, r"at 2 bits it loses ([\d.]+) times what\s+neighbours do there, ([\d.]+) on") == both
    balanced = [times["OPQ loses less than balanced", bits, "smollm2"] for bits in (4, 2)]
    assert numbers(text, r"be\s+told \(([\d.]+) at 4 bits\) or loses \(([\d.]+) at 2\)") == balanced
    near = [times["OPQ loses less than neighbours", bits, "smollm2"] for bits in (4, 2)]
    assert numbers(text, r"neighbours \(([\d.]+) and ([\d.]+) of their loss") == near


def test_what_bins_take_of_a_processors_time():
    times = [
        float(re.search(r"([\d.]+)x", row["ours"])[1])
        for row in claims()
        if row["claim"].startswith("values by gather or bins")
    ]
    assert len(times) == 4
    assert numbers(TEXT, r"bins take ([\d.]+) to ([\d.]+) times as long as gathering") == [min(times), max(times)]
