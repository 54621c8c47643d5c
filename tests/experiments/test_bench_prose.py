"""Figures in prose on speed on a CPU are those of the records beside it."""

import pandas as pd
import pytest
from bench_cells import cell, took
from prose import ROOT, numbers, script, text_of

from pqkv.kernels.cpu.byte_lookups.assembly import instructions, key_loops
from pqkv.kernels.cpu.byte_lookups.avx512 import Avx512
from pqkv.kernels.cpu.byte_lookups.shapes import Shape
from pqkv.record import load_records


@pytest.fixture(scope="module")
def tables():
    return script("experiments/bench/tables.py")


def speedup(folder, context, bits, **wanted):
    (found,) = [
        r.metrics["speedup"].value
        for r in load_records(ROOT / folder)
        if (r.config["context"], r.config["bits"], r.config["batch"]) == (context, bits, 1)
        and all(r.config.get(key) == value for key, value in wanted.items())
    ]
    return round(found, 2)


def test_three_bits_and_exact_pages_at_32768_tokens(tables):
    said = numbers(
        text_of("docs/how-to/speed.md"),
        r"3 bits run at ([\d.]+) times the speed of torch's SDPA where floats reach ([\d.]+), and pages of exact "
        r"bfloat16 vectors at ([\d.]+) times",
    )
    bytes_, floats = (cell(tables, 32768, 3, form).metrics["speedup"].value for form in ("bytes", "floats"))
    assert said == [round(bytes_, 2), round(floats, 2), speedup("results/bench", 32768, 0, dtype="bfloat16")]


def test_where_codes_of_one_sequence_win(tables):
    by_bits = {bits: {} for bits in (4, 3, 2)}
    for record in load_records(ROOT / "results/bench"):
        c = record.config
        if c["batch"] == 8:
            assert record.metrics["speedup"].low > 1
        elif c["bits"]:
            by_bits[c["bits"]][c["context"]] = record.metrics["speedup"]
    short = (128, 512, 1024)
    assert all(by_bits[bits][context].high < 1 for bits in by_bits for context in short)
    assert all(found.high < 1 for found in by_bits[3].values())
    assert by_bits[4][2048].low < 1 < by_bits[4][2048].high
    assert all(found.low > 1 for context, found in by_bits[4].items() if context > 2048)
    assert all(found.low > 1 for context, found in by_bits[2].items() if context >= 2048)


def test_pages_of_bfloat16_beside_three_bits_in_byte_tables(tables):
    """About the same at two lengths, less at the longest."""
    times = {
        r.config["context"]: took(r) / took(cell(tables, r.config["context"], 3, "bytes"))
        for r in load_records(ROOT / "results/bench")
        if r.config["dtype"] == "bfloat16"
    }
    assert all(0.9 < times[context] < 1.1 for context in (4096, 32768))
    assert times[131072] < 0.9
    short = cell(tables, 1024, 3, "bytes").metrics["speedup"]
    assert short.low < 1 < short.high


def test_byte_tables_beside_floats(tables):
    text = text_of("experiments/bench/README.md")
    told = numbers(text, r"3 bits take ([\d.]+) of\s+the time that they take by floats and run at ([\d.]+) times")
    by_bytes, by_floats = (cell(tables, 32768, 3, form) for form in ("bytes", "floats"))
    assert told == [round(took(by_bytes) / took(by_floats), 2), round(by_bytes.metrics["speedup"].value, 2)]
    assert max(ratio(tables, context, bits) for context in (4096, 32768) for bits in (3, 2)) < 1.12


def ratio(tables, context, bits):
    """What two bytes take in units of one, with AVX2."""
    return took(cell(tables, context, bits, "bytes")) / took(cell(tables, context, bits, "one byte"))


def test_groups_in_parts(tables):
    found = {}
    for record in load_records(ROOT / "results/bench-bytes"):
        heads = record.config["heads"] // record.config["kv_heads"]
        if heads > 8:
            found[heads, tables.form_of(record)] = took(record)
    told = numbers(
        " ".join(text_of("experiments/bench/README.md").split()),
        r"two of eight take ([\d.]+) of the time of floats .*?nine in three of three (\d\.\d+)",
    )
    assert told == [round(found[heads, "bytes"] / found[heads, "floats"], 2) for heads in (16, 9)]


def test_instructions_of_the_log():
    """Of the code then; what they are now stands in tables."""
    every = pd.read_csv(ROOT / "results/checks/byte_instructions_before.csv").set_index(["processor", "nbits", "d_sub"])
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


def test_instructions_are_counted_of_this_code():
    table = pd.read_csv(ROOT / "results/checks/byte_instructions.csv").set_index(
        ["planes", "processor", "nbits", "d_sub"]
    )
    # another version of LLVM may need a few more or less
    assert instructions(key_loops(Avx512, Shape(8, 2, 4), "znver4"), parts=True) == pytest.approx(
        table.loc[(2, "znver4", 8, 2), "keys"], rel=0.1
    )


def test_what_encoding_costs_a_step():
    def share(folder, context):
        (found,) = (
            r.metrics
            for r in load_records(ROOT / folder)
            if (r.config["bits"], r.config["context"], r.config["batch"], r.config["backend"]) == (4, context, 1, "cpu")
        )
        return round(1e5 / found["encode_tokens_per_s"].value / found["latency_ms"].value, 1)

    told = numbers(
        " ".join(text_of("experiments/LOG.md").split()),
        r"costs a step ([\d.]+)% of its time at 1,024 tokens with 4 bits and ([\d.]+)% at 32,768 .*?"
        r"frames and gains ([\d.]+)% and ([\d.]+)%",
    )
    assert told == [share(f, n) for f in ("results/bench", "results/bench-recipe") for n in (1024, 32768)]


def test_what_another_launch_would_save():
    share = {
        record.config["context"]: {
            row["part"]: round(100 * row["share"]) for row in record.tables["breakdown"] if row["share"]
        }
        for record in load_records(ROOT / "results/bench-parts")
    }
    told = numbers(
        " ".join(text_of("experiments/LOG.md").split()),
        r"spends (\d+)% of its time at 1,024 tokens on its exact part and (\d+)% on the merge, "
        r"(\d+)% and (\d+)% at 32,768 .*?"
        r"below the (\d+)% of the merge. Arguments made in Python take (\d+)%, all parts together (\d+)% of the step",
    )
    assert told[:4] == [share[context][part] for context in (1024, 32768) for part in ("exact part", "merge")]
    assert told[4:] == [share[1024][part] for part in ("merge", "arguments", "sum of parts")]


def test_instructions_of_vnni():
    every = pd.read_csv(ROOT / "results/checks/byte_instructions_before.csv")
    every = every.set_index(["path", "planes", "processor", "nbits", "d_sub"]).sort_index()
    values, keys = every["values"], every["keys"]
    text = " ".join(text_of("experiments/LOG.md").split())
    (same,) = numbers(text, r"\(([\d.]+) instructions at 3 bits on Cascade Lake either way\)")
    assert keys["avx2", 2, "cascadelake", 6, 2] == keys["vnni", 2, "cascadelake", 6, 2] == same
    told = numbers(
        text,
        r"Values: ([\d.]+) in place of ([\d.]+) there and ([\d.]+) in place of ([\d.]+) on Alder Lake at 3 bits, "
        r"([\d.]+) and ([\d.]+) in place of ([\d.]+) and ([\d.]+) with",
    )
    three = [values[path, 2, cpu, 6, 2] for cpu in ("cascadelake", "alderlake") for path in ("vnni", "avx2")]
    two = [values[path, 2, cpu, 4, 2] for path in ("vnni", "avx2") for cpu in ("cascadelake", "alderlake")]
    assert told == [*three, *two]
    told = numbers(
        text,
        r"together ([\d.]+) in place of ([\d.]+) at 3 bits on Cascade Lake, ([\d.]+) in place of ([\d.]+) at 4 bits",
    )
    both = keys + values
    cases = [("cascadelake", 6), ("alderlake", 4)]
    assert told == [round(both[path, 1, cpu, nbits, 2], 1) for cpu, nbits in cases for path in ("vnni", "avx2")]


def test_what_rounding_to_bytes_costs_a_model():
    said = numbers(
        text_of("experiments/bench/README.md"),
        r"loses ([\d.]+) nats where backend `cpu` loses ([\d.]+) \(`results/byte",
    )
    found = {r.config["backend"]: r.metrics["kld_mean"].value for r in load_records(ROOT / "results/byte-centroids")}
    assert said == [round(found[name], 6) for name in ("cpu-bytes", "cpu")]


def test_recipe_pqkv_by_bytes():
    found = {
        r.config["backend"]: r.metrics
        for r in load_records(ROOT / "results/bench-recipe")
        if (r.config["bits"], r.config["context"]) == (3, 32768)
    }
    floats, by_bytes = found["cpu"], found["cpu-bytes"]
    told = numbers(
        text_of("experiments/bench/README.md"), r"that is ([\d.]+) times as fast, ([\d.]+) .*? floats reach ([\d.]+)\."
    )
    faster = floats["latency_ms"].value / by_bytes["latency_ms"].value
    assert told == [round(faster, 2), *(round(m["speedup"].value, 2) for m in (by_bytes, floats))]
    page = numbers(
        text_of("docs/how-to/speed.md"), r"3 bits of recipe pqkv at ([\d.]+) times .*? in place of ([\d.]+\d)"
    )
    assert page == told[1:]


WHOLE_MODEL = {
    "results/end-to-end": (
        r"takes ([\d.]+) ms a token after 2,048 tokens and ([\d.]+) ms after 7,872, with `DynamicCache` ([\d.]+) and "
        r"([\d.]+), with `StaticCache` ([\d.]+) and (\d+\.\d)"
    ),
    "results/end-to-end-zen4": (
        r"end-to-end-zen4`\) it takes ([\d.]+) and ([\d.]+) ms, `DynamicCache`\s([\d.]+) and ([\d.]+), `StaticCache` "
        r"([\d.]+) and (\d+\.\d)"
    ),
}


@pytest.mark.parametrize("folder", WHOLE_MODEL)
def test_a_whole_model_on_a_processor(folder):
    took = {
        r.config["context"]: {row["name"]: round(row["tpot_ms"], 1) for row in r.tables["caches"]}
        for r in load_records(ROOT / folder)
    }
    told = numbers(text_of("docs/how-to/speed.md"), WHOLE_MODEL[folder])
    names = ("pqkv", "DynamicCache", "StaticCache")
    assert told == [took[context][name] for name in names for context in (2048, 7872)]


def test_the_log_on_first_steps_and_avx512(tables):
    log = text_of("experiments/LOG.md")
    assert numbers(log, r"no record kept\) and\s+take ([\d.]+\d)") == [round(took(cell(tables, 1024, 3, "bytes")), 2)]
    at_1024 = [
        r.metrics["speedup"].value
        for folder in ("results/bench", "results/bench-bytes")
        for r in load_records(ROOT / folder)
        if r.config["context"] == 1024 and r.config["batch"] == 1 and r.config["bits"]
        and tables.form_of(r) in (None, "bytes")
    ]  # fmt: skip
    assert numbers(log, r"at 1,024 are at ([\d.]+) to ([\d.]+) of exact") == [
        round(min(at_1024), 1), round(max(at_1024), 1),
    ]  # fmt: skip
    found = {bits: cell(tables, 131072, bits, "bytes", "results/bench-avx512").metrics["speedup"] for bits in (4, 3, 2)}
    told = numbers(log, r"Speed at 131,072 tokens: ([\d.]+), ([\d.]+) and ([\d.]+)\s+times torch's")
    assert told == [round(found[bits].value, 2) for bits in (4, 3, 2)]
    with_avx2 = [took(of["bytes"]) / took(of["one byte"]) for of in both_forms(tables, "results/bench-bytes")]
    told = numbers(log, r"\(([\d.]+) to ([\d.]+) times as fast\) and ([\d.]+) times with AVX-512")
    pair = [cell(tables, 32768, 4, form, "results/bench-avx512") for form in ("bytes", "one byte")]
    assert told == [round(min(with_avx2), 2), round(max(with_avx2), 2), round(took(pair[0]) / took(pair[1]), 2)]
    recipe = {
        r.config["backend"]: round(took(r), 1)
        for r in load_records(ROOT / "results/bench-recipe")
        if (r.config["bits"], r.config["context"]) == (3, 32768)
    }
    told = numbers(log, r"3 bits take ([\d.]+) ms in\s+place of ([\d.]+) at 32,768")
    assert told == [recipe["cpu-bytes"], recipe["cpu"]]


def both_forms(tables, folder):
    """Of each cell the records of two bytes and of one."""
    found = {}
    for record in load_records(ROOT / folder):
        c = record.config
        if (form := tables.form_of(record)) and tables.usual(record):
            found.setdefault((c["num_subspaces"], c["nbits"], c["context"]), {})[form] = record
    return [of for of in found.values() if "one byte" in of]
