"""Figures in prose on speed on a CPU are those of the records beside it."""

import pandas as pd
import pytest
from prose import ROOT, numbers, text_of

from pqkv.kernels.cpu.byte_lookups.assembly import instructions, key_loops
from pqkv.kernels.cpu.byte_lookups.avx512 import Avx512
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.record import load_records


def speedup(folder, context, bits, **wanted):
    (found,) = [
        r.metrics["speedup"].value
        for r in load_records(ROOT / folder)
        if (r.config["context"], r.config["bits"], r.config["batch"]) == (context, bits, 1)
        and all(r.config.get(key) == value for key, value in wanted.items())
    ]
    return round(found, 2)


def test_three_bits_and_exact_pages_at_32768_tokens():
    said = numbers(
        text_of("docs/how-to/speed.md"),
        r"3 bits run at ([\d.]+) times the speed of torch's SDPA where floats reach ([\d.]+), and pages of exact "
        r"bfloat16 vectors at ([\d.]+) times",
    )
    bytes_, floats = (speedup("results/bench-bytes", 32768, 3, cpu_path=path) for path in ("avx2", None))
    assert said == [bytes_, floats, speedup("results/bench", 32768, 0, dtype="bfloat16")]


def test_exact_pages_of_bfloat16_take_less_time_than_three_bits():
    """What README and page conclude for this processor."""
    exact, coded = (
        next(
            r.metrics["latency_ms"].value
            for r in load_records(ROOT / folder)
            if r.config["context"] == 32768 and r.config["bits"] == bits and r.config.get(key) == value
        )
        for folder, bits, key, value in (
            ("results/bench", 0, "dtype", "bfloat16"),
            ("results/bench-bytes", 3, "cpu_path", "avx2"),
        )
    )
    assert exact < coded


def test_instructions_of_the_log():
    every = pd.read_csv(ROOT / "results/checks/byte_instructions.csv").set_index(["processor", "nbits", "d_sub"])
    table, one = every[every.planes == 2], every[every.planes == 1]
    text = text_of("experiments/LOG.md")
    both, byte = table["keys"] + table["values"], one["keys"] + one["values"]
    said = numbers(text, r"Instructions: ([\d.]+) per 64 tokens .*?; ([\d.]+) at 3 bits with AVX2")
    assert said == [both["znver4", 8, 2], both["znver3", 6, 2]]
    said = numbers(
        text,
        r"([\d.]+) instructions in place of ([\d.]+) at 4 bits on Zen 4,\s+([\d.]+) in place of ([\d.]+) at 3 bits",
    )
    assert said == [byte["znver4", 8, 2], both["znver4", 8, 2], byte["znver3", 6, 2], both["znver3", 6, 2]]
    # another version of LLVM may need a few more or less
    assert instructions(key_loops(Avx512, Shape(8, 2, 4), "znver4"), parts=True) == pytest.approx(
        table.loc[("znver4", 8, 2), "keys"], rel=0.1
    )


def test_what_rounding_to_bytes_costs_a_model():
    said = numbers(
        text_of("experiments/bench/README.md"),
        r"loses ([\d.]+) nats where backend `cpu` loses ([\d.]+) \(`results/byte",
    )
    found = {r.config["backend"]: r.metrics["kld_mean"].value for r in load_records(ROOT / "results/byte-centroids")}
    assert said == [round(found[name], 6) for name in ("cpu-bytes", "cpu")]
