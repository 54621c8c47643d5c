"""Small cells a second on two processes of a sweep against one, in interleaved rounds, and what others took meanwhile.

python experiments/checks/sweep_scales.py workers [-o results/checks]

A round is a sweep of its own, one thread a process; its rate is counted from where all processes have begun. It starts
when others left the cores alone for ten seconds, or after a minute of waiting. `driver` is what the sweep's own process
took of a core beside those that run cells, `others` what everything else took. The ratio is that of the rounds that
others took least from, as many with one process as with two; rounds that more was taken from are shown beside them.
"""

import os
import statistics
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
from sweeping import Rows, finish, run_part, small, start

ROUNDS, COUNTED = 12, 3
QUIET, PATIENCE = 0.1, 60.0  # cores that others may take; seconds to wait for that


def workers(work: Path) -> Rows:
    file, rows = work / "sweep.toml", []
    file.write_text(small(list(range(256, 264)), windows=4))
    finish(start(file, work / "warm"))  # codebooks are trained and kept, code is compiled
    for number in range(ROUNDS):
        jobs = (1, 2, 2, 1)[number % 4]
        waited = wait_for_quiet()
        folder = work / str(number)
        child = start(file, folder, "--jobs", str(jobs))
        others = Others(child.pid)
        finish(child)
        first, last, rate = span(folder)
        driver, away = others.between(first, last)
        rows.append({"jobs": jobs, "cells_per_s": rate, "driver": driver, "others": away, "waited_s": waited})
        print(rows[-1], flush=True)
    best = {
        jobs: sorted((row for row in rows if row["jobs"] == jobs), key=lambda row: row["others"])[:COUNTED]
        for jobs in (1, 2)
    }
    of = {jobs: statistics.median(row["cells_per_s"] for row in found) for jobs, found in best.items()}
    return [
        {
            "ratio": of[2] / of[1],
            "others_most": max(row["others"] for found in best.values() for row in found),
            "rounds": ROUNDS,
            "counted": 2 * COUNTED,
            "cores": os.cpu_count(),
        },
        *rows,
    ]


def span(folder: Path) -> tuple[float, float, float]:
    """From which end of a cell to which one cells are counted, and their number a second."""
    ends = sorted(path.stat().st_mtime for path in (folder / "cells").glob("*.cell.json"))
    first = len(ends) // 6  # processes start at their own pace
    return ends[first], ends[-1], (len(ends) - 1 - first) / (ends[-1] - ends[first])


class Others:
    """What everything but a process and its children takes of the processor, sampled as the process runs."""

    def __init__(self, process: int) -> None:
        self._samples: list[tuple[float, float, float]] = []
        threading.Thread(target=self._watch, args=(psutil.Process(process),), daemon=True).start()

    def _watch(self, process: psutil.Process) -> None:
        ours: dict[int, float] = {}
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            with suppress(psutil.Error):
                for one in [process, *process.children(recursive=True)]:
                    with suppress(psutil.Error):
                        ours[one.pid] = sum(one.cpu_times()[:2])
            self._samples.append((time.time(), ours.get(process.pid, 0.0), busy() - sum(ours.values())))
            time.sleep(0.25)

    def between(self, first: float, last: float) -> tuple[float, float]:
        """Cores that the process itself and that others took from one time to another, on average."""
        inside = [sample for sample in self._samples if first <= sample[0] <= last]
        (start, *before), (end, *after) = inside[0], inside[-1]
        driver, others = ((late - early) / (end - start) for early, late in zip(before, after, strict=True))
        return driver, others


def busy() -> float:
    """Seconds that all cores have worked since the machine began, those stolen from it among them."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def wait_for_quiet() -> float:
    """Seconds waited until others left the cores alone for ten seconds, or patience ended."""
    begun = time.time()
    while True:
        clock, before = time.time(), busy()
        time.sleep(10)
        if (busy() - before) / (time.time() - clock) < QUIET or time.time() - begun > PATIENCE:
            return time.time() - begun


run_part(__doc__, {"workers": workers})
