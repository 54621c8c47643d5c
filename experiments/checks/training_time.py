"""How long codebook training takes, stage by stage, the most memory it held, and its held-out errors.

python experiments/checks/training_time.py [-o results/training] [--codebooks FILE] [KEY=VALUE ...]

Keys are those of a `pqkv train-codebooks` configuration (model=smollm2 bits=4 context=4096 init=random ...); with -o
the run leaves a record (kind `training`). Other work on the cores shows in the load, which is recorded.
"""

import argparse
import os
import resource
import time
from pathlib import Path
from typing import Any

from pqkv.cell import run_cell
from pqkv.codec.codebook_file import save_codebooks
from pqkv.config import TrainConfig
from pqkv.env import environment, git_state
from pqkv.lm import load_model
from pqkv.lm.train import train
from pqkv.record import Metric, RecordStore

asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
asked.add_argument("-o", "--output", type=Path)
asked.add_argument("--codebooks", type=Path)
asked.add_argument("settings", nargs="*")
given = asked.parse_args()
config = TrainConfig.parse(dict(word.split("=", 1) for word in given.settings), source="the command line")


def measure() -> dict[str, Any]:
    stages: dict[str, list[float]] = {}
    begun = time.perf_counter()
    lm = load_model(config.model, config.dtype, config.device, config.device_map)
    stages["load model"] = [begun, time.perf_counter()]
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    books, header = train(lm, config, lambda stage, *_: stages.setdefault(stage, []).append(time.perf_counter()))
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if given.codebooks:
        save_codebooks(given.codebooks, books, header)
    keys, values = zip(*header.errors, strict=True)
    errors = {"key_error": keys, "key_query_error": header.query_errors, "value_error": values}
    metrics = {"training_s": Metric(value=seconds, unit="s"), "peak_rss": Metric(value=peak * 1024.0, unit="B")}
    metrics |= {name: Metric(value=sum(e) / len(e), unit="", n=len(e)) for name, e in errors.items()}
    rows = [{"stage": stage, "seconds": times[-1] - times[0]} for stage, times in stages.items()]
    memory = [{"peak_rss_before_training": held * 1024, "peak_rss": peak * 1024, "load": os.getloadavg()[0]}]
    return {"metrics": metrics, "tables": {"stages": rows, "memory": memory}}


record = run_cell(
    measure,
    kind="training",
    config=config.model_dump(mode="json"),
    seed=config.seed,
    env=environment(),
    git=git_state(),
    store=RecordStore(given.output) if given.output else None,
    force=True,
)
if record.status == "failed":
    raise SystemExit(str(record.error))
for row in record.tables["stages"]:
    print(f"{row['stage']}: {row['seconds']:.1f} s")
for name, metric in record.metrics.items():
    size = metric.unit == "B"
    print(f"{name}: {metric.value / 2**30:.2f} GiB" if size else f"{name}: {metric.value:.5g} {metric.unit}")
print(f"load {record.tables['memory'][0]['load']:.1f}")
