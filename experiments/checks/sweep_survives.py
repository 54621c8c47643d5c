"""Sweeps that are killed, shared, planned, spread and compared: what is lost, done twice or foretold wrongly.

python experiments/checks/sweep_survives.py PART [-o results/checks]

PART is kills (60 small cells, 50 SIGKILLs at random instants), shared (two sweeps on one folder), plan (estimates
beside what was taken), workers (one process and two), planning (10,000 cells), compare (a planted regression of 2% in
KLD) or ray (a worker, the driver and a raylet killed). Cells are those of the bundled model. Each part prints its rows;
with -o they are a record, in place of the one before.
"""

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from recording import keep

from pqkv.codec.codebook_file import load_codebooks, save_codebooks
from pqkv.sweep.outcome import Outcomes

SMALL = """
command = "eval"
threads = 1
[fixed]
model = "reference"
metrics = ["perplexity", "kld"]
windows = 2
[product]
context = {contexts}
bits = [4, 3, 2]
mode = ["exact-schedule", "all-coded"]
"""
Rows = list[dict[str, Any]]
TIMED = ("started_at", "seconds", "env", "git", "checksum")
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
PQKV = [sys.executable, "-c", "from pqkv_cli.main import main; main()"]


def start(file: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PQKV, "sweep", str(file), "-o", str(folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str]) -> list[int]:
    """Cells, those run now, those there before."""
    out, err = child.communicate()
    if child.returncode:
        raise SystemExit(f"a sweep ended with {child.returncode}: {err}")
    return [int(count) for count in re.search(r"(\d+) cells: (\d+) run now, (\d+) there before", out).groups()]


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Records by digest, without what a clock or the machine's state says."""
    found = {}
    for path in folder.glob("*.json"):
        record = json.loads(path.read_text())
        for key in TIMED:
            del record[key]
        record["tables"].pop("memory_plan", None)
        found[record["digest"]] = record
    return found


def written(folder: Path) -> dict[str, int]:
    """When each record was put where it is."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}


def kills(work: Path) -> Rows:
    file, whole, killed = work / "sweep.toml", work / "undisturbed", work / "killed"
    file.write_text(SMALL.format(contexts=list(range(256, 266))))
    finish(start(file, whole))
    draw, seen, over, orphans, at_work, count = random.Random(0), {}, 0, 0, 0, 50
    for number in range(count):
        known = len(list((killed / "cells").glob("*.cell.json")))
        child = start(file, killed)
        if number % 2:  # any instant after a cell was over; the others are at any instant of starting
            while child.poll() is None and len(list((killed / "cells").glob("*.cell.json"))) == known:
                time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.2 if number % 2 else 9))
        children = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
        at_work += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.communicate()
        psutil.wait_procs(children, timeout=5)
        orphans += sum(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children)
        now = written(killed)
        changed = sum(now.get(name) != at for name, at in seen.items())
        over += changed
        seen = now
        print(f"kill {number + 1}: {len(now)} records, {changed} lost or written over", file=sys.stderr)
    total, run_now, there = finish(start(file, killed))
    last = written(killed)
    over += sum(last.get(name) != at for name, at in seen.items())
    outcomes = list(Outcomes(killed).all())
    one, other = figures(whole), figures(killed)
    return [{
        "kills": count, "kills_at_work": at_work, "cells": total, "records": len(other), "outcomes": len(outcomes),
        "run_after_the_last_kill": run_now, "there_before_it": there, "records_lost_or_written_over": over,
        "records_unequal_to_undisturbed": sum(one[d] != other.get(d) for d in one) + len(other.keys() - one.keys()),
        "failed": sum(outcome.status == "failed" for outcome in outcomes), "children_that_outlived": orphans,
        "locks_left": len(list(killed.rglob(".*.lock"))),
    }]  # fmt: skip


def shared(work: Path) -> Rows:
    file, folder = work / "sweep.toml", work / "shared"
    file.write_text(SMALL.format(contexts=list(range(256, 266))))
    both = [start(file, folder), start(file, folder)]
    counts = [finish(child) for child in both]
    outcomes = list(Outcomes(folder).all())
    return [{
        "cells": counts[0][0], "run_by_the_first": counts[0][1], "run_by_the_second": counts[1][1],
        "measured": sum(outcome.measured for outcome in outcomes), "records": len(written(folder)),
        "attempts": sum(outcome.attempts for outcome in outcomes),
    }]  # fmt: skip


def plan(work: Path) -> Rows:
    """Estimates from a sweep of short contexts for one of longer ones with other windows, then what that took."""
    small, large = work / "small.toml", work / "large.toml"
    text = SMALL.replace("windows = 2", "windows = {windows}")
    small.write_text(text.format(contexts=[256, 1024], windows=3))
    large.write_text(text.format(contexts=[512, 2048], windows=4))
    finish(start(small, work / "small"))
    out = subprocess.run(
        [*PQKV, "sweep", str(large), "--plan", "-o", str(work / "large"), "--past", str(work / "small")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    lines = [line for line in out.splitlines() if re.match("[0-9a-f]{12} ", line)]
    expected = {line[:12]: re.search(r"([\d.]+) (s|min) +([\d,.]+) (MB|GB) ", line).groups() for line in lines}
    clock = time.perf_counter()
    finish(start(large, work / "large"))
    took = time.perf_counter() - clock
    said = re.search(r"about ([\d.]+) (s|min) on 1 process", out).groups()
    whole = float(said[0]) * (60 if said[1] == "min" else 1)
    rows = []
    for outcome in Outcomes(work / "large").all():
        seconds, minutes, size, unit = expected[outcome.digest]
        peak = float(size.replace(",", "")) * (1e6 if unit == "MB" else 1e9)
        rows.append({
            "context": outcome.context, "settings": outcome.settings,
            "expected_s": float(seconds) * (60 if minutes == "min" else 1),
            "took_s": outcome.seconds, "expected_bytes": peak, "peak_bytes": outcome.peak_rss,
        })  # fmt: skip
    ratios = [row["expected_bytes"] / row["peak_bytes"] for row in rows]
    times = [row["expected_s"] / row["took_s"] for row in rows]
    summary = {
        "cells": len(rows), "expected_whole_s": whole, "took_whole_s": took, "whole_time_ratio": whole / took,
        "time_ratio_least": min(times), "time_ratio_most": max(times), "memory_ratio_least": min(ratios),
        "memory_ratio_most": max(ratios),
    }  # fmt: skip
    return [summary, *rows]


def workers(work: Path) -> Rows:
    """Cells a second on one process and on two, one thread each; what starting takes is measured apart."""
    file = work / "sweep.toml"
    file.write_text(SMALL.format(contexts=list(range(256, 276))).replace("windows = 2", "windows = 8"))
    load, rows = os.getloadavg()[0], []
    for turn in range(2):
        for jobs in (1, 2):
            folder = work / f"{turn}-{jobs}"
            finish(start(file, folder, "--jobs", str(jobs)))
            rows.append({"jobs": jobs, "cells_per_s": rate(folder)})
    of = {jobs: statistics.mean(row["cells_per_s"] for row in rows if row["jobs"] == jobs) for jobs in (1, 2)}
    return [{"ratio": of[2] / of[1], "load_before": load, "cores": os.cpu_count()}, *rows]


def rate(folder: Path) -> float:
    """Cells a second between the first outcome's end and the last one's, of all processes."""
    ends = sorted(path.stat().st_mtime for path in (folder / "cells").glob("*.cell.json"))
    first = len(ends) // 6  # processes start at their own pace
    return (len(ends) - 1 - first) / (ends[-1] - ends[first])


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


def regression(work: Path) -> Rows:
    """Codebooks whose centroids are moved until KLD is 2% more, against those they come from; and a second run."""
    import torch

    from pqkv.config import EvalConfig, TrainConfig
    from pqkv.lm import load_model
    from pqkv.lm.train import train
    from pqkv.quality.cell_run import Shared
    from pqkv.quality.evaluate import evaluate
    from pqkv.record import RecordStore

    shared = Shared(load_model())

    def run(books: Path, folder: Path) -> float:
        wanted = EvalConfig(codebooks=(str(books),), context=(512,), windows=32, mode=("all-coded",), metrics=("kld",))
        (record,) = evaluate(wanted, RecordStore(folder), shared=shared)
        return record.metrics["kld_mean"].value

    plain = work / "plain.safetensors"
    settings = TrainConfig(recipe="product", bits=4, iterations=3, samples=4096, calibration_tokens=4096)
    save_codebooks(plain, *train(shared.lm, settings))
    before = run(plain, work / "before")
    run(plain, work / "again")
    low, high = 0.0, 0.2
    for step in range(12):
        middle = (low + high) / 2
        moved, header = load_codebooks(plain)
        for layer, sides in enumerate(zip(moved.keys, moved.values, strict=True)):
            for side, book in enumerate(sides):
                draw = torch.Generator().manual_seed(2 * layer + side)
                book.centroids.add_(middle * book.centroids.std() * torch.randn(book.centroids.shape, generator=draw))
        save_codebooks(work / f"{step}.safetensors", moved, header)
        gained = run(work / f"{step}.safetensors", work / f"moved-{step}") / before - 1
        if abs(gained - 0.02) < 0.001:
            break
        low, high = (middle, high) if gained < 0.02 else (low, middle)
    rows = []
    for name, second in (("planted", work / f"moved-{step}"), ("the same commit", work / "again")):
        words = ["compare", str(work / "before"), str(second), "--metrics", "kld_mean", "--format", "json",
                 "--fail-above", "0.5%"]  # fmt: skip
        done = subprocess.run([*PQKV, *words], check=False, capture_output=True, text=True)
        (found,) = json.loads(done.stdout)
        rows.append({"against": name, "exit_code": done.returncode, "windows": 32, "change": found["value"],
                     "low": found["low"], "high": found["high"], "over": found["how"]})  # fmt: skip
    return rows


def busy_below(process: psutil.Process) -> list[psutil.Process]:
    """Workers of Ray below a process that run a cell now."""
    found = []
    for one in process.children(recursive=True):
        with suppress(psutil.Error):
            if "ray::run_cell" in " ".join(one.cmdline()):
                found.append(one)
    return found


def on_ray(work: Path) -> Rows:
    """A worker of Ray, the driver and a node's raylet killed in turn, each after three cells were over."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    file, whole = work / "sweep.toml", work / "undisturbed"
    file.write_text(SMALL.format(contexts=[256, 257, 258, 259]))
    finish(start(file, whole))
    rows = []
    for victim in ("worker", "driver", "raylet"):
        folder, cluster = work / victim, None
        if victim == "raylet":
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
            second = cluster.add_node(num_cpus=1)
        address = "local" if cluster is None else cluster.address
        child = start(file, folder, "--ray", address)
        while child.poll() is None and len(list((folder / "cells").glob("*.cell.json"))) < 3:
            time.sleep(0.05)
        if cluster is not None:  # until the node that is to die has a cell
            raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
            while child.poll() is None and not busy_below(raylet):
                time.sleep(0.02)
        seen = written(folder)
        if victim == "worker":
            busy_below(psutil.Process(child.pid))[0].kill()
        elif victim == "driver":
            child.kill()
            child.communicate()
            child = start(file, folder, "--ray", "local")
        else:
            cluster.remove_node(second, allow_graceful=False)
        out, err = child.communicate()
        last, one, other = written(folder), figures(whole), figures(folder)
        rows.append({
            "killed": victim, "exit_code": child.returncode, "cells": len(list((folder / "cells").glob("*.cell.json"))),
            "records_before_the_kill": len(seen), "records": len(last),
            "lost_or_written_over": sum(last.get(name) != at for name, at in seen.items()),
            "unequal_to_undisturbed": sum(one[d] != other.get(d) for d in one), "given_out_again":
            (out + err).count("given out again"),
        })  # fmt: skip
        print(rows[-1], err[-300:], file=sys.stderr)
        if cluster is not None:
            cluster.shutdown()
    return rows


PARTS = {
    "ray": on_ray,
    "kills": kills,
    "shared": shared,
    "plan": plan,
    "workers": workers,
    "planning": planning,
    "compare": regression,
}

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("part", choices=PARTS)
parser.add_argument("-o", "--output", type=Path)
asked = parser.parse_args()
with tempfile.TemporaryDirectory(prefix="pqkv-sweep-") as where:
    keep(f"sweep_{asked.part}", {"part": asked.part}, asked.output, lambda: PARTS[asked.part](Path(where)))
