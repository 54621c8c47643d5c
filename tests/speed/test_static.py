"""`pqkv bench --static`: reports are read, occupancy is the calculator's, the model moves the right way."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from pqkv_cli.main import main

from pqkv.config import BenchConfig
from pqkv.errors import ConfigError, KernelError
from pqkv.kernels.cuda import compile as compiling
from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.kernels.cuda.compile import Report, find_disassembler, find_ptxas, parse_report
from pqkv.kernels.cuda.exact import ExactVariant
from pqkv.speed import assumptions as taken
from pqkv.speed import static as module
from pqkv.speed.assumptions import LeftOut, assumptions, left_out
from pqkv.speed.static import (
    GPUS,
    TARGETS,
    Gpu,
    Kernel,
    Occupancy,
    Phase,
    examine,
    gpu_named,
    occupancy,
    predict,
    static,
    variants,
)

PTXAS = """ptxas info    : 8 bytes gmem
ptxas info    : Compiling entry function 'kernel' for 'sm_90'
ptxas info    : Function properties for kernel
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 109 registers, used 1 barriers, 16 bytes cumulative stack size, 46080 bytes smem
ptxas info    : Compile time = 242.735 ms
"""
REPORT = Report(109, 46080, 16, 4, 8)
H100 = GPUS["h100"]


KEYS, VALUES = Phase(3.0, 0.03, 5.5), Phase(2.7, 0.1, 5.6)


def kernel(group=4, entries_bits=8, keys=KEYS, values=VALUES):
    codes = Codes(64, entries_bits, 2, "transposed")
    return Kernel(coded_variant(group, codes, codes), REPORT, Occupancy(4, 16, "registers"), keys, values)


def test_what_ptxas_prints_is_read():
    assert parse_report(PTXAS) == REPORT
    assert REPORT.spill_bytes == 12
    without = PTXAS.replace(", 16 bytes cumulative stack size, 46080 bytes smem", "")
    assert parse_report(without).shared_bytes == 0
    with pytest.raises(KernelError, match="said nothing"):
        parse_report("ptxas fatal")


@pytest.mark.parametrize(
    ("report", "block", "gpu", "expected"),
    [
        # 109 registers: 3488 a warp, in lots of 256 3584; 65536 / 3584 = 18 warps, 16 on four schedulers: 4 blocks
        (REPORT, 128, "h100", Occupancy(4, 16, "registers")),
        # 46080 + 1024 bytes into 164 KiB: 3 blocks
        (REPORT, 128, "a100", Occupancy(3, 12, "shared memory")),
        (Report(32, 0, 0, 0, 0), 128, "h100", Occupancy(16, 64, "registers")),
        (Report(24, 0, 0, 0, 0), 256, "h100", Occupancy(8, 64, "warps")),
        (Report(16, 0, 0, 0, 0), 32, "h100", Occupancy(32, 32, "blocks")),
    ],
)
def test_occupancy_by_hand(report, block, gpu, expected):
    assert occupancy(report, block, GPUS[gpu]) == expected


def test_the_model_by_hand():
    # one KV head of 64 subspaces, four heads: keys max(12 / 4, 3.2 + 0.12) = 3.32, values max(10.8 / 4, 1.4) = 2.7
    assert module.clocks_per_token(kernel(), H100) == pytest.approx(2 * (3.32 + 2.7))
    # 2 * 16384 words of 5.55 instructions: 1421 clocks; 128 KiB of fp16 at 5120 / 132 bytes a clock take longer
    assert module.table_clocks(kernel(), H100) == pytest.approx(131072 / (5120 / 132))


def test_the_model_is_monotone():
    config = BenchConfig(dtype="float16")

    def at(batch=1, context=32768, gpu="h100", **changes):
        return predict(config, kernel(**changes), GPUS[gpu], batch, context)

    assert at(context=131072) > at() > 0
    assert at(batch=4) > at()
    assert at(keys=Phase(9.0, 0.03, 5.5)) > at()
    assert at(values=Phase(9.0, 0.1, 5.6)) > at()
    assert at(gpu="a100") > at(gpu="h100") >= at(gpu="h200")
    assert at(entries_bits=4) < at()
    assert at(keys=None) is None
    assert at(context=64) < 1e-3  # nothing is coded yet


def test_the_model_of_exact_attention_is_bandwidth_where_instructions_are_few():
    found = Kernel(ExactVariant("float16", 128, 4), REPORT, Occupancy(4, 16, "registers"), loop=400)
    config = BenchConfig(dtype="float16")
    expected = 2 * 131072 * 8 * 128 * 2 / 3350e6
    assert predict(config, found, H100, 1, 131072) == pytest.approx(expected, rel=0.05)
    assert predict(config, replace(found, loop=None), H100, 1, 4096) is None


def test_all_variants_or_those_asked_for():
    everything = variants(BenchConfig(), everything=True)
    assert len(everything) == 5 * 4 + 4 * 3
    assert {shape for _, shape, _, _ in everything} == {(64, 8), (64, 6), (32, 8), (128, 4), (64, 4), None}
    assert [v.group for *_, v in variants(BenchConfig(bits=(4,), heads=24, kv_heads=8), everything=False)] == [
        1,
        2,
        3,
        4,
        8,
    ]


def test_unknown_gpus_are_named():
    with pytest.raises(ConfigError, match="unknown GPU 'b200'; known: h100, h200, a100"):
        gpu_named("b200")


def test_without_an_assembler_one_line_names_the_remedy(monkeypatch):
    monkeypatch.setattr(compiling, "_package_folders", lambda name: [])
    with pytest.raises(KernelError, match=r"ptxas.*pip install 'pqkv\[cuda\]'"):
        find_ptxas()


def test_the_disassembler_is_found_in_three_places(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(compiling, "_package_folders", lambda name: [])
    assert find_disassembler() is None

    def tool(folder, name):
        folder.mkdir(parents=True)
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
        return folder / name

    bundled = tool(tmp_path / "triton" / "backends" / "nvidia" / "bin", "cuobjdump")
    monkeypatch.setattr(compiling, "_package_folders", lambda name: [tmp_path / "triton"])
    assert find_disassembler() == bundled
    ours = tool(tmp_path / "cuda" / "bin", "nvdisasm")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert find_disassembler() == ours


def test_records_carry_no_measured_name(monkeypatch):
    monkeypatch.setattr(module, "examine", lambda variant, gpu: kernel(variant.group))
    monkeypatch.setattr(module, "find_ptxas", lambda: None)
    records = list(static(BenchConfig(bits=(4,), lengths=(4096,)), H100))
    assert [record.config["group"] for record in records] == [1, 2, 4, 8]
    assert all(record.kind == "static" and "predicted_ms" not in record.metrics for record in records)
    assert "latency_ms" not in json.dumps([record.model_dump(mode="json") for record in records])
    (rows,) = [record.tables["predictions"] for record in records if record.tables["predictions"]]
    assert [(row["batch"], row["context"], row["heads"]) for row in rows] == [(1, 4096, 32)]


@pytest.mark.parametrize("format", ["table", "csv", "json"])
def test_the_command_prints_every_variant_and_calls_a_model_a_model(monkeypatch, capsys, format):
    monkeypatch.setattr(module, "examine", lambda variant, gpu: kernel(variant.group))
    monkeypatch.setattr(module, "find_ptxas", lambda: None)
    left = lambda config, variant, gpu: [LeftOut("nodes of the graph", f"of {variant.group} heads", "launches")]
    monkeypatch.setattr(taken, "left_out", left)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--static", "--bits", "4", "--lengths", "4096", "--gpu", "h200", "--format", format])
    assert stop.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "predicted_ms" in out
    assert "latency_ms" not in out
    if format == "table":
        assert "compiled for h200" in out
        assert "<= 6.5" in out and "<= 3.5" in out
        assert "a model, not a measurement" in out
        assert "4,800 GB/s" in out
        assert "of 4 heads" in out


def test_the_command_without_an_assembler_exits_with_2(monkeypatch, capsys):
    monkeypatch.setattr(compiling, "_package_folders", lambda name: [])
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--static", "--bits", "4"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].endswith("remedy: pip install 'pqkv[cuda]'")


@pytest.mark.parametrize("gpu", GPUS)
def test_every_assumption_has_a_value_and_a_source(gpu):
    rows = {one.what: one for one in assumptions(GPUS[gpu])}
    assert all(one.value and one.source for one in rows.values())
    numbers = [field for field in fields(Gpu) if field.name not in ("name", "capability")]
    said = " ".join(one.value for one in rows.values()).replace(",", "")
    for field in numbers:
        value = getattr(GPUS[gpu], field.name)
        assert f"{value >> 10 if field.name == 'shared_bytes' else value:g}" in said.split(), field.name
    assert str(module.MOST_CONFLICTS) in said
    assert f"{module.UNROLLED:g} instructions" in said


@pytest.mark.parametrize(("entries", "told"), sorted(module.CONFLICTS.items()))
def test_conflicts_are_those_of_uniform_draws(entries, told):
    """Wavefronts: the most different words that lanes want of one bank."""
    draw = np.random.default_rng(0)
    words = draw.integers(0, entries, (4000, 32))
    found = [max(np.bincount(np.unique(row) % 32)) for row in words]
    assert np.mean(found) == pytest.approx(told, abs=0.06)


def test_the_conflicts_of_large_tables_are_those_of_random_lanes():
    draw = np.random.default_rng(0)
    found = [max(np.bincount(row)) for row in draw.integers(0, 32, (4000, 32))]
    assert np.mean(found) == pytest.approx(module.MOST_CONFLICTS, abs=0.06)


@pytest.mark.slow
@pytest.mark.ci
def test_what_the_model_leaves_out_is_counted():
    pytest.importorskip("numba_cuda")
    if find_disassembler() is None:
        pytest.skip("instructions are not counted: there is no disassembler here")
    codes = Codes(64, 8, 2, "transposed")
    variant = coded_variant(4, codes, codes)
    found = left_out(BenchConfig(heads=32, kv_heads=8), variant, H100)
    rows = {one.what: one.amount for one in found}
    told = (Path(__file__).parents[2] / "experiments/static/README.md").read_text()
    assert "\n".join(f"| {' | '.join(one)} |" for one in found) in told
    sass = compiling.disassemble(compiling.compile_coded(variant, H100.capability).cubin)
    lines = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", sass)
    assert rows["barriers and waits for copies"] == str(sum(name in ("BAR", "DEPBAR", "LDGDEPBAR") for name in lines))
    around, everything = map(int, re.findall(r"\d+", rows["all but look-ups and tables"]))
    assert everything == len(lines)
    assert 0 < around < everything
    assert rows["nodes of the graph"] == "3"  # counted as they are launched in tests/kernels/cuda/test_launches.py
    assert re.fullmatch(r"\d+ instructions, 32 blocks a sequence", rows["the merge"])


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("gpu", ["h100", "a100"])
@pytest.mark.parametrize("group", [1, 2])
def test_compiled_variants_spill_nothing_and_keep_to_the_targets(group, gpu):
    pytest.importorskip("numba_cuda")
    codes = Codes(64, 8, 2, "transposed")
    found = examine(coded_variant(group, codes, codes), GPUS[gpu])
    assert found.report.spill_bytes == 0
    assert found.report.stack_bytes == 0
    assert found.occupancy.warps >= 12
    if find_disassembler() is None:
        pytest.skip("no spills; instructions were not counted: there is no disassembler here")
    assert found.keys is not None and found.values is not None
    assert found.keys.instructions <= TARGETS[group]
    assert found.values.instructions <= {1: 6.5, 2: 4.0}[group]
    assert 0 < found.values.per_table_word < 8 and 0 < found.keys.per_table_word < 25
