"""Figures of the README's results, which are told at more length elsewhere, are those of the records (those of a GPU:
`test_gpu_cards_prose.py`).
"""

import subprocess
import sys
from statistics import median

from prose import ROOT, numbers, script, text_of

from pqkv.record import load_records

README, SPEED = text_of("README.md"), text_of("docs/how-to/speed.md")


def speedup(folder, context, bits, **wanted):
    (found,) = (
        record.metrics["speedup"].value
        for record in load_records(ROOT / folder)
        if wanted.items() <= record.config.items()
        and (record.config["context"], record.config["bits"]) == (context, bits)
    )
    return round(found, 2)


def test_ways_of_coding_beside_each_other():
    lab = script("experiments/quality-lab/tables.py")
    rows = {row.method: row for row in lab.found("wikitext2-test.txt", 1024).rows}
    told = numbers(
        README,
        r"default codes lose ([\d.]+) nats at ([\d.]+) bits, product codes ([\d.]+) at 4, "
        r"KIVI ([\d.]+) at 5, int4 ([\d.]+) at 4\.5",
    )
    bits = told.pop(1)
    assert bits == round(rows["pqkv 4"].value("code_bits"), 2)
    losses = [rows[name].kld.value for name in ("pqkv 4", "codebooks 4", "KIVI 4", "int4")]
    assert told == [float(f"{loss:.3g}") for loss in losses]


def test_speed_on_a_processor():
    own = {"batch": 1, "dtype": "float32"}
    assert numbers(README, r"runs at ([\d.]+) times the speed of .*? with 4 bits, ([\d.]+) with 2;") == [
        speedup("results/bench", 32768, bits, **own) for bits in (4, 2)
    ]
    assert numbers(README, r"in byte tables at ([\d.]+), and .*? bfloat16 vectors at ([\d.]+)\.") == [
        speedup(
            "results/bench-bytes", 32768, 3, cpu_path="avx2", backend="cpu", heads=32, kv_heads=8, head_dim=128, batch=1
        ),
        speedup("results/bench", 32768, 0, batch=1, dtype="bfloat16"),
    ]
    short = [speedup("results/bench", context, bits, **own) for context in (128, 512, 1024) for bits in (4, 2)]
    assert max(short) < 1


def test_how_fast_tokens_are_encoded():
    rates, times = {}, {}
    for record in load_records(ROOT / "results/bench"):
        if bits := record.config["bits"]:
            rate = {row["name"]: row["tokens_per_s"] for row in record.tables["encoding"]}
            rates.setdefault(bits, []).append(rate["pqkv"])
            times.setdefault(bits, []).append(rate["pqkv"] / rate["faiss sa_encode"])
    told = numbers(
        SPEED,
        r"Encoding runs at ([\d,]+) tokens/s at 4 bits, ([\d.]+) times FAISS .*? "
        r"\(([\d.]+) times at 2 bits, ([\d.]+) at 3;",
    )
    assert told == [round(median(rates[4]), -3), *(round(median(times[bits]), 1) for bits in (4, 2, 3))]


def test_bytes_of_a_cache_at_32k_tokens():
    done = subprocess.run(
        [sys.executable, ROOT / "experiments/checks/footprint_figure.py", "32768"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert numbers(SPEED, r"bfloat16 exact parts takes ([\d.]+)% of the") == numbers(done.stdout, r"bytes, ([\d.]+)%")
