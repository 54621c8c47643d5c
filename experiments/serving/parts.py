"""What each part of recipe pqkv costs a decoding step, all variants taking turns on random caches.

python experiments/serving/parts.py [-o results/serving] [--heads 32 --kv-heads 8 --head-dim 128]
python experiments/serving/parts.py --device cuda --dtype float16 --batch 8 --part "product codes" --part all

A step is what a cache takes: the query that codes meet, attention, and the turn of what comes out. Each variant has as
many caches as exceed the processor's own twice. On a GPU a step is a captured graph.

Where memory happens to lie moves a variant by up to 1.9 times for as long as it lies there, so a race is run in several
placements: every variant's caches are made anew, in another order, and the ratio of two variants is taken within each.
The figure is the median of the placements' medians over rounds, its range their least and greatest.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from pqkv.cell import run_cell
from pqkv.codec import code_geometry
from pqkv.config import BenchConfig, CodeShape
from pqkv.env import environment, git_state, machine_name
from pqkv.kernels import choose_backend
from pqkv.record import RecordStore
from pqkv.speed.bench import backend_call, metric_of
from pqkv.speed.served_parts import SERVED_PARTS
from pqkv.speed.synthetic import decode_inputs
from pqkv.speed.timing import Contestant, copies_beyond_cache, race

asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
asked.add_argument("-o", "--output", type=Path)
asked.add_argument("--heads", type=int, default=32)
asked.add_argument("--kv-heads", type=int, default=8)
asked.add_argument("--head-dim", type=int, default=128)
asked.add_argument("--lengths", default="4096,32768")
asked.add_argument("--bits", default="4,3,2")
asked.add_argument("--batch", type=int, default=1)
asked.add_argument(
    "--part", action="append", choices=SERVED_PARTS, help="these and not all, the first being what others are held to"
)
asked.add_argument("--repeats", type=int, default=15, help="rounds of each placement")
asked.add_argument("--placements", type=int, default=5, help="times that all caches are made anew")
asked.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
asked.add_argument(
    "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of all that is exact"
)
given = asked.parse_args()
if given.device == "cuda" and not torch.cuda.is_available():
    asked.error("torch finds no NVIDIA GPU here: leave --device out, or run where there is one, on a torch for CUDA")
device, chosen = torch.device(given.device), given.part or list(SERVED_PARTS)
backend = choose_backend("auto", device, getattr(torch, given.dtype), fallback=False)


def contestant(part: str, bits: float, length: int, most: int | None = None) -> Contestant:
    config = BenchConfig(
        heads=given.heads,
        kv_heads=given.kv_heads,
        head_dim=given.head_dim,
        dtype=given.dtype,
        served=SERVED_PARTS[part],
    )
    shape = code_geometry(CodeShape(bits=bits), given.head_dim)
    first = decode_inputs(config, length, given.batch, shape, 0, device)
    count = most or copies_beyond_cache(first.read, device)
    cases = [first, *(decode_inputs(config, length, given.batch, shape, i, device) for i in range(1, count))]
    return Contestant(part, [backend_call(backend, case, given.head_dim**-0.5, None) for case in cases])


def launched(part: str, bits: float, length: int) -> dict[str, int]:
    """Nodes of a step: kernels of pqkv and operations of torch. Nothing on a processor, which launches none."""
    if device.type != "cuda":
        return {}
    from pqkv.speed.launches import count_launches

    step = contestant(part, bits, length, most=1).calls[0]
    step()  # what is derived once is there from then on
    kernels, operations = count_launches(step)
    return {"kernels": kernels, "operations": len(operations)}


def measure(bits: float, length: int) -> dict[str, Any]:
    medians: dict[str, list[float]] = {part: [] for part in chosen}
    ratios: dict[str, list[float]] = {part: [] for part in chosen}
    seconds: list[float] = []
    for placement in range(given.placements):
        turn = placement % len(chosen)
        made = [contestant(part, bits, length) for part in chosen[turn:] + chosen[:turn]]
        timings = race(made, given.repeats, always=chosen, device=device)
        base = timings[chosen[0]].seconds
        seconds += base
        for part, timing in timings.items():
            medians[part].append(timing.median)
            ratios[part].append(statistics.median(own / of for own, of in zip(timing.seconds, base, strict=True)))
        del made, timings  # their memory before the next placement's
    rows = [
        {
            "parts": part, "median_ms": statistics.median(medians[part]), "times": statistics.median(ratios[part]),
            "low": min(ratios[part]), "high": max(ratios[part]), **launched(part, bits, length),
        }
        for part in chosen
    ]  # fmt: skip
    metrics = {"latency_ms": metric_of(statistics.median(medians[chosen[0]]), [1e3 * s for s in seconds], "ms")}
    return {"metrics": metrics, "tables": {"parts": rows}}


store, env, git = RecordStore(given.output) if given.output else None, environment(), git_state()
for bits in map(float, given.bits.split(",")):
    for length in map(int, given.lengths.split(",")):
        described = {
            "model": f"{given.heads} query heads on {given.kv_heads} KV heads of {given.head_dim}",
            "machine": machine_name(env), "backend": backend.name, "threads": torch.get_num_threads(),
            "bits": bits, "context": length, "repeats": given.repeats, "placements": given.placements,
        }  # fmt: skip
        others = {"batch": given.batch, "dtype": given.dtype, "parts": given.part}
        described |= {name: value for name, value in others.items() if value != asked.get_default(name)}
        record = run_cell(
            lambda bits=bits, length=length: measure(bits, length),
            kind="serving", config=described, seed=0, env=env, git=git, store=store, force=True,
        )  # fmt: skip
        found = {row["parts"]: round(row["times"], 3) for row in record.tables.get("parts", [])}
        print(described["model"], bits, length, found, record.error or "")
