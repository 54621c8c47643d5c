"""What a sweep's plan said beside what its cells took, and what planning takes itself.

python experiments/checks/sweep_foretells.py PART [-o results/checks]

PART is plan (evaluations of other lengths and windows than those measured), plan_bench (times at other lengths than
those measured) or planning (100 and 10,000 cells).
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from sweeping import PQKV, Rows, finish, run_part, small, start

from pqkv.sweep.outcome import Outcomes

BENCH = """
command = "bench"
threads = 1
[fixed]
model = "llama-3.1-8b"
served = []
repeats = 11
[product]
lengths = {lengths}
bits = [4, 2, 0]
"""
# a command, then its seconds by the clock and of the processor, and its peak of resident kilobytes
MEASURED = """
import re, sys, time
start = time.perf_counter()
from pqkv_cli.main import main
try:
    main()
finally:
    peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]
    print(time.perf_counter() - start, time.process_time(), peak, file=sys.stderr)
"""
UNITS = {"s": 1, "min": 60, "h": 3600, "MB": 1e6, "GB": 1e9}


def plan(work: Path) -> Rows:
    return foretold(work, small([256, 1024], windows=3), small([512, 2048], windows=4))


def plan_bench(work: Path) -> Rows:
    return foretold(work, BENCH.format(lengths=[256, 4096]), BENCH.format(lengths=[1024, 8192]))


def foretold(work: Path, known: str, asked: str) -> Rows:
    """Estimates for the sweep `asked` from what `known` took, then what it took."""
    first, second = work / "known.toml", work / "asked.toml"
    first.write_text(known)
    second.write_text(asked)
    finish(start(first, work / "known"))
    out = subprocess.run(
        [*PQKV, "sweep", str(second), "--plan", "-o", str(work / "asked"), "--past", str(work / "known")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line for line in out.splitlines() if re.match("[0-9a-f]{12} ", line)]
    expected = {line[:12]: re.search(r"([\d.]+) (s|min) +([\d,.]+) (MB|GB) ", line).groups() for line in lines}
    clock = time.perf_counter()
    finish(start(second, work / "asked"))
    took = time.perf_counter() - clock
    number, unit = re.search(r"about ([\d.]+) (s|min) on 1 process", out).groups()
    whole = float(number) * UNITS[unit]
    rows = []
    for outcome in Outcomes(work / "asked").all():
        seconds, of_time, size, of_size = expected[outcome.digest]
        rows.append({
            "context": outcome.context, "settings": outcome.settings, "expected_s": float(seconds) * UNITS[of_time],
            "took_s": outcome.seconds, "starting_s": outcome.starting,
            "expected_bytes": float(size.replace(",", "")) * UNITS[of_size], "peak_bytes": outcome.peak_rss,
        })  # fmt: skip
    sizes = [row["expected_bytes"] / row["peak_bytes"] for row in rows]
    times = [row["expected_s"] / row["took_s"] for row in rows]
    summary = {
        "cells": len(rows), "expected_whole_s": whole, "took_whole_s": took, "whole_time_ratio": whole / took,
        "time_ratio_least": min(times), "time_ratio_most": max(times), "memory_ratio_least": min(sizes),
        "memory_ratio_most": max(sizes), "load": os.getloadavg()[0],
    }  # fmt: skip
    return [summary, *rows]


def planning(work: Path) -> Rows:
    text = """command = "eval"
[fixed]
model = "reference"
[product]
context = [256, 512, 1024, 2048, 4096]
bits = [6, 4, 3, 2, 1]
windows = {windows}
seed = {seeds}
"""
    rows = []
    for count in (100, 10_000):
        file = work / f"{count}.toml"
        file.write_text(text.format(windows=list(range(1, 3 if count == 100 else 21)),
                                    seeds=list(range(2 if count == 100 else 20))))  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, "sweep", str(file), "--plan"], check=False, capture_output=True, text=True
        )
        assert done.stdout.count("no cell like it was measured") == count, done.stderr
        seconds, processor, peak = map(float, done.stderr.split()[-3:])
        rows.append({"cells": count, "seconds": seconds, "processor_s": processor, "peak_bytes": 1024 * int(peak)})
    few, many = rows
    per_cell = 1e3 * (many["processor_s"] - few["processor_s"]) / (many["cells"] - few["cells"])
    return [
        {
            "processor_ms_per_cell": per_cell,
            "load": os.getloadavg()[0],
            "bytes_more": many["peak_bytes"] - few["peak_bytes"],
        },
        *rows,
    ]


run_part(__doc__, {"plan": plan, "plan_bench": plan_bench, "planning": planning})
