"""Figures in the LOG's entry on windows, rotary embeddings and kept tokens are those of their records."""

import csv
import math

import pytest
from prose import ROOT, numbers, text_of

from pqkv.record import load_records
from pqkv.reproduce.attention_variants.kept import kept_rows
from pqkv.reproduce.attention_variants.reach import reach_rows
from pqkv.reproduce.paired import paired_ratio

FOLDER = ROOT / "results/attention-variants"
LOG = text_of("experiments/LOG.md")


def rows_of(name):
    with (FOLDER / f"{name}.csv").open() as text:
        return list(csv.DictReader(text))


def test_first_tokens_beside_a_window():
    klds = {
        (row["model"], int(row["window"]), int(row["sinks"])): float(row["kld_mean"])
        for row in rows_of("d_windows")
        if float(row["bits"]) == 0
    }
    (small,) = numbers(LOG, r"as much through a window without first tokens as with them \(([\d.]+) times the KLD\)")
    assert small == round(klds["reference", 256, 0] / klds["reference", 256, 4], 3)
    short, long = numbers(LOG, r"SmolLM2 loses ([\d.]+) times as much at 256 tokens of 1,024 and (\d+) times at 512")
    assert short == round(klds["smollm2", 256, 0] / klds["smollm2", 256, 4], 1)
    assert long == round(klds["smollm2", 512, 0] / klds["smollm2", 512, 4])


def test_rotary_embeddings():
    losses = {
        record.config["rope"]: {} for record in load_records(FOLDER) if record.kind == "attention-reach"
    }  # fmt: skip
    for record in load_records(FOLDER):
        if record.kind == "attention-reach" and record.config["model"] == "reference":
            losses[record.config["rope"]][record.config["tokens"]] = record.samples

    def over_none(kind, tokens, sample):
        mean = [sum(part[tokens][sample]) / len(part[tokens][sample]) for part in (losses[kind], losses["none"])]
        return math.exp(mean[0] - mean[1])

    told = numbers(LOG, r"\(linear (\d+) times, NTK \+([\d.]+)%, YaRN \+([\d.]+)%, bundled model\)")
    assert told[0] == round(over_none("linear", 4096, "nll"))
    assert told[1:] == [round(100 * (over_none(kind, 4096, "nll") - 1), 1) for kind in ("ntk", "yarn")]
    (far,) = numbers(LOG, r"at four times it YaRN costs ([\d.]+) of none")
    assert far == round(over_none("yarn", 16384, "nll_newest"), 2)


@pytest.fixture(scope="module")
def kept():
    """By model a function of two cells, each by what was kept and the share: KLD over KLD, with its interval."""
    records = load_records(FOLDER)
    by_digest = {record.digest: record for record in records}
    every = {(row["model"], row["way"], row["keep_share"]): row for row in kept_rows(records)}

    def of(model):
        rows = {key[1:]: row for key, row in every.items() if key[0] == model}
        return rows, lambda a, b: paired_ratio(by_digest[rows[a]["record"]], by_digest[rows[b]["record"]])

    return of


def test_importance_on_a_real_model(kept):
    rows, times = kept("smollm2")
    (told,) = numbers(LOG, r"on SmolLM2 it loses ([\d.]+) of either at a quarter of the prompt")
    found = [times(("attention-sum", 0.25), (other, 0.25)) for other in ("recent", "random")]
    assert {round(value, 2) for value, *_ in found} == {told}
    assert all(high < 1 for *_, high in found)
    four = next(key for key in rows if key[0].startswith("all tokens, 4"))
    assert 80 < times(("attention-sum", 0.25), four)[0] < 100  # "a ninetieth"


def test_codes_beside_kept_tokens(kept):
    rows, times = kept("reference")
    six = next(key for key in rows if key[0].startswith("all tokens, 6"))
    best = min(times((policy, 0.5), six)[0] for policy in ("attention-sum", "recent", "random"))
    (told,) = numbers(LOG, r"a policy would have to be (\d+) times better to compete with 6 bits")
    assert told == round(best, -1)
    for share in (0.5, 0.25):
        for other in ("recent", "random"):
            low = times(("attention-sum", share), (other, share))[1]
            assert low > 0.5  # nowhere near what codes do
        assert times(("attention-sum", share), ("recent", share))[2] > 1


def test_together():
    rows = {(row["techniques"], int(row["tokens"])): float(row["smaller"]) for row in rows_of("h_stacked")}
    longest = max(tokens for _, tokens in rows)
    product = math.prod(rows[name, longest] for name in ("heads", "window", "codes"))
    whole, all_parts = numbers(LOG, r"in bytes either \((\d+) of (\d+)\)")
    assert [whole, all_parts] == [round(rows["heads+window+codes", longest]), round(product)]


def test_beyond_the_trained_length_of_a_real_model():
    rows = {
        (row["rope"], row["tokens"]): row
        for row in reach_rows(load_records(ROOT / "results/attention-variants"))
        if row["model"] == "smollm2"
    }
    text = text_of("experiments/attention-variants/README.md")
    told = numbers(
        text,
        r"have a perplexity\s+of ([\d.]+) by its own embedding, ([\d.]+) by YaRN, ([\d.]+) by NTK, ([\d.]+) by linear "
        r"scaling and ([\d.]+) by the lesson's",
    )
    kinds = ("none", "yarn", "ntk", "linear", "the lesson's")
    assert told == [float(f"{rows[kind, 16384]['perplexity_newest']:.3g}") for kind in kinds]
    told = numbers(text, r"they cost ([\d.]+)%, ([\d.]+)% and ([\d.]+)%, so")
    plain = rows["none", 8192]["perplexity"]
    costs = [100 * (rows[kind, 8192]["perplexity"] / plain - 1) for kind in ("yarn", "ntk", "linear")]
    assert told == [round(costs[0], 2), round(costs[1], 2), round(costs[2])]
    assert {row["windows"] for row in rows.values()} == {1}
