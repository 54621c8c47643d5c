"""Sweeps that are killed and shared: what is lost, done twice or written over.

python experiments/checks/sweep_survives.py PART [-o results/checks]

PART is kills (60 small cells, 50 SIGKILLs at random instants), kills_on_ray (the same of drivers on a local Ray
cluster), shared (two sweeps on one folder) or ray (a worker, the driver and a raylet killed). Each part prints its
rows; with -o they are a record, in place of the one before.
"""

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
from sweeping import Rows, figures, finish, over, run_part, small, start, written

from pqkv.sweep.outcome import Outcomes

KILLS = 50


def kills(work: Path) -> Rows:
    return killed_at_random(work, [], starting=9.0)


def kills_on_ray(work: Path) -> Rows:
    """Drivers of one cluster are killed, which outlives them all: its workers must drop what they had."""
    os.environ.setdefault("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        return killed_at_random(work, ["--ray", cluster.address], starting=14.0)
    finally:
        cluster.shutdown()


def killed_at_random(work: Path, words: list[str], starting: float) -> Rows:
    """Half of the kills come within `starting` seconds, the others at any instant after a cell was over."""
    file, whole, killed = work / "sweep.toml", work / "undisturbed", work / "killed"
    file.write_text(small(list(range(256, 266))))
    finish(start(file, whole))
    draw, seen, lost, orphans, at_work = random.Random(0), dict[str, int](), 0, 0, 0
    for number in range(KILLS):
        known = over(killed)
        child = start(file, killed, *words)
        if number % 2:
            while child.poll() is None and over(killed) == known:
                time.sleep(0.02)
        time.sleep(draw.uniform(0, 1.2 if number % 2 else starting))
        children = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
        at_work += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.communicate()
        psutil.wait_procs(children, timeout=5)
        orphans += sum(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children)
        now = written(killed)
        changed = sum(now.get(name) != at for name, at in seen.items())
        lost, seen = lost + changed, now
        print(f"kill {number + 1}: {len(now)} records, {changed} lost or written over", file=sys.stderr)
    total, run_now, there = finish(start(file, killed, *words))
    last = written(killed)
    lost += sum(last.get(name) != at for name, at in seen.items())
    outcomes = list(Outcomes(killed).all())
    one, other = figures(whole), figures(killed)
    return [{
        "kills": KILLS, "kills_at_work": at_work, "cells": total, "records": len(other), "outcomes": len(outcomes),
        "run_after_the_last_kill": run_now, "there_before_it": there, "records_lost_or_written_over": lost,
        "records_unequal_to_undisturbed": sum(one[d] != other.get(d) for d in one) + len(other.keys() - one.keys()),
        "failed": sum(outcome.status == "failed" for outcome in outcomes), "children_that_outlived": orphans,
        "locks_left": len(list(killed.rglob(".*.lock"))),
    }]  # fmt: skip


def shared(work: Path) -> Rows:
    file, folder = work / "sweep.toml", work / "shared"
    file.write_text(small(list(range(256, 266))))
    both = [start(file, folder), start(file, folder)]
    counts = [finish(child) for child in both]
    outcomes = list(Outcomes(folder).all())
    return [{
        "cells": counts[0][0], "run_by_the_first": counts[0][1], "run_by_the_second": counts[1][1],
        "measured": sum(outcome.measured for outcome in outcomes), "records": len(written(folder)),
        "attempts": sum(outcome.attempts for outcome in outcomes),
    }]  # fmt: skip


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
    file.write_text(small([256, 257, 258, 259]))
    finish(start(file, whole))
    rows = []
    for victim in ("worker", "driver", "raylet"):
        folder, cluster = work / victim, None
        if victim == "raylet":
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
            second = cluster.add_node(num_cpus=1)
        address = "local" if cluster is None else cluster.address
        child = start(file, folder, "--ray", address)
        while child.poll() is None and over(folder) < 3:
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
            "killed": victim, "exit_code": child.returncode, "cells": over(folder),
            "records_before_the_kill": len(seen), "records": len(last),
            "lost_or_written_over": sum(last.get(name) != at for name, at in seen.items()),
            "unequal_to_undisturbed": sum(one[d] != other.get(d) for d in one), "given_out_again":
            (out + err).count("given out again"),
        })  # fmt: skip
        print(rows[-1], err[-300:], file=sys.stderr)
        if cluster is not None:
            cluster.shutdown()
    return rows


run_part(__doc__, {"kills": kills, "kills_on_ray": kills_on_ray, "shared": shared, "ray": on_ray})
