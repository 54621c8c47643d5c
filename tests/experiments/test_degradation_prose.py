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
        if record.config["model"] == "reference" and record.config["bits"]:
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
    rows = [row for row in race_rows(load_records(ROOT / "results/incremental-decode")) if row["way"] == "split"]
    slower = [round(row["times_sdpa"], 1) for row in rows]
    assert numbers(log, r"exact vectors is ([\d.]+) to ([\d.]+) times as slow") == [min(slower), max(slower)]


def test_speed_ups_of_a_processor():
    found = {}
    for record in load_records(ROOT / "results/bench"):
        c, speedup = record.config, record.metrics.get("speedup")
        if record.kind == "bench" and c["batch"] == 1 and speedup is not None:
            found[c["context"], c["bits"]] = speedup
    text = (ROOT / "experiments/bench/README.md").read_text()
    rows = re.findall(r"^\| ([\d,]+) \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert [row[0] for row in rows] == ["1,024", "4,096", "32,768", "131,072"]
    for tokens, *cells in rows:
        for bits, cell in zip((4, 3, 2), cells, strict=True):
            speedup = found.get((int(tokens.replace(",", "")), bits))
            if speedup is None:
                assert cell == "not measured"
            else:
                assert cell == f"{speedup.value:.2f} [{speedup.low:.2f}, {speedup.high:.2f}]"
