"""How long codebook training takes, stage by stage, and the most memory it held.

python experiments/checks/training_time.py MODEL [BITS] [CALIBRATION_TOKENS] [SAMPLES] [ITERATIONS]

Other work on the cores shows in the load, which is printed too; take the best of several runs.
"""

import os
import resource
import sys
import time

from pqkv.config import TrainConfig
from pqkv.lm import load_model
from pqkv.lm.train import train

begun = time.perf_counter()
given = dict(zip(("bits", "calibration_tokens", "samples", "iterations"), sys.argv[2:], strict=False))
config = TrainConfig.parse({"model": sys.argv[1], **given}, source="the command line")
stages: dict[str, list[float]] = {}


def told(stage: str, done: int, total: int) -> None:
    stages.setdefault(stage, []).append(time.perf_counter())


lm = load_model(config.model, config.dtype, config.device, config.device_map)
print(f"load model: {time.perf_counter() - begun:.1f} s")
_, header = train(lm, config, told)
for stage, times in stages.items():
    print(f"{stage}: {times[-1] - times[0]:.1f} s")
keys, values = zip(*header.errors, strict=True)
means = [sum(errors) / header.num_layers for errors in (keys, values, header.query_errors)]
print("held-out error, mean over layers: keys {:.5f}, values {:.5f}, keys in the queries' metric {:.5f}".format(*means))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(f"all: {time.perf_counter() - begun:.1f} s, at most {peak:.2f} GiB; load {os.getloadavg()[0]:.1f}")
