"""What each part of recipe pqkv costs a decoding step, all variants taking turns on random caches.

python experiments/serving/parts.py [-o results/serving] [--heads 32 --kv-heads 8 --head-dim 128] [--repeats 25]
python experiments/serving/parts.py --device cuda --dtype float16 --batch 8 --part "product codes" --part all

A step is what a cache takes: the query that codes meet, attention, and the turn of what comes out. Ratios are medians
over rounds in which every variant ran once; each variant has as many caches as exceed the processor's own twice. What
others are held to stands first and last: whose memory is taken first can be twice as slow, for reasons of the machine,
so the last counts and the first shows what that is. On a GPU a step is a captured graph.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from pqkv.cell import run_cell
from pqkv.codec import code_geometry
from pqkv.config import SERVED, BenchConfig, CodeShape
from pqkv.env import environment, git_state, machine_name
from pqkv.kernels import choose_backend
from pqkv.record import RecordStore
from pqkv.speed.bench import backend_call, metric_of
from pqkv.speed.synthetic import decode_inputs
from pqkv.speed.timing import Contestant, copies_beyond_cache, median_interval, race

# the universal codebook stands behind the Hadamard matrix, with gains
PARTS = {
    "product codes": (),
    "int8": ("int8",),
    "frame": ("frame",),
    "frame, turning": ("frame", "turning"),
    "gains": ("gains",),
    "hadamard, universal": ("hadamard", "universal"),
    "all": SERVED,
}

asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
asked.add_argument("-o", "--output", type=Path)
asked.add_argument("--heads", type=int, default=32)
asked.add_argument("--kv-heads", type=int, default=8)
asked.add_argument("--head-dim", type=int, default=128)
asked.add_argument("--lengths", default="4096,32768")
asked.add_argument("--bits", default="4,3,2")
asked.add_argument("--batch", type=int, default=1)
asked.add_argument(
    "--part", action="append", choices=PARTS, help="these and not all, the first being what others are held to"
)
asked.add_argument("--repeats", type=int, default=25)
asked.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
asked.add_argument(
    "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of all that is exact"
)
given = asked.parse_args()
if given.device == "cuda" and not torch.cuda.is_available():
    asked.error("torch finds no NVIDIA GPU here: leave --device out, or run where there is one, on a torch for CUDA")
device, chosen = torch.device(given.device), given.part or list(PARTS)
backend = choose_backend("auto", device, getattr(torch, given.dtype), fallback=False)


def measure(bits: float, length: int) -> dict[str, Any]:
    shape = code_geometry(CodeShape(bits=bits), given.head_dim)
    contestants = []
    for place, part in enumerate([*chosen, chosen[0]]):
        name = part if place else f"{part}, made first"
        config = BenchConfig(
            heads=given.heads, kv_heads=given.kv_heads, head_dim=given.head_dim, dtype=given.dtype, served=PARTS[part]
        )
        first = decode_inputs(config, length, given.batch, shape, 0, device)
        count = copies_beyond_cache(first.read, device)
        cases = [first, *(decode_inputs(config, length, given.batch, shape, i, device) for i in range(1, count))]
        calls = [backend_call(backend, case, given.head_dim**-0.5, None) for case in cases]
        contestants.append(Contestant(name, calls))
    timings = race(contestants, given.repeats, always=[c.name for c in contestants], device=device)
    base = timings[chosen[0]]
    metrics = {"latency_ms": metric_of(base.median, [1e3 * s for s in base.seconds], "ms")}
    rows = []
    for name, timing in timings.items():
        ratios = [own / other for own, other in zip(timing.seconds, base.seconds, strict=True)]
        low, high = median_interval(ratios)
        rows.append(
            {"parts": name, "median_ms": timing.median, "times": statistics.median(ratios), "low": low, "high": high}
        )
    return {"metrics": metrics, "tables": {"parts": rows}}


store, env, git = RecordStore(given.output) if given.output else None, environment(), git_state()
for bits in map(float, given.bits.split(",")):
    for length in map(int, given.lengths.split(",")):
        described = {
            "model": f"{given.heads} query heads on {given.kv_heads} KV heads of {given.head_dim}",
            "machine": machine_name(env), "backend": backend.name, "threads": torch.get_num_threads(),
            "bits": bits, "context": length, "repeats": given.repeats,
        }  # fmt: skip
        others = {"batch": given.batch, "dtype": given.dtype, "parts": given.part}
        described |= {name: value for name, value in others.items() if value != asked.get_default(name)}
        record = run_cell(
            lambda bits=bits, length=length: measure(bits, length),
            kind="serving", config=described, seed=0, env=env, git=git, store=store, force=True,
        )  # fmt: skip
        found = {row["parts"]: round(row["times"], 3) for row in record.tables.get("parts", [])}
        print(described["model"], bits, length, found, record.error or "")
