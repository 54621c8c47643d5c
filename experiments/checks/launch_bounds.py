"""What a kernel takes when the assembler is asked for more blocks on a multiprocessor than it chooses registers for.

python experiments/checks/launch_bounds.py [-o results/checks] [--rounds 21]

On an NVIDIA GPU. The same step on the same random caches, with a kernel of which nothing is asked and with each
`launch_bounds`, captured and taking turns: heads of 128, a batch of 8, 32,768 tokens. `blocks` are those that a
multiprocessor of sm_90 has room for where nothing is asked, then those asked for, which shared memory may not allow;
the ratio is a median over rounds. Two of the kernels are those that lost a block when kernels were taken apart
(experiments/LOG.md), the others those that a decoding step spends its time in. What pays goes into
`pqkv/kernels/cuda/bounds.py`.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from recording import keep

from pqkv.codec import code_geometry
from pqkv.config import BenchConfig, CodeShape
from pqkv.kernels import choose_backend
from pqkv.kernels.cuda import backend as steps
from pqkv.speed.bench import backend_call
from pqkv.speed.synthetic import decode_inputs
from pqkv.speed.timing import Contestant, copies_beyond_cache, race

RECIPE = BenchConfig().served  # what recipe pqkv adds to product codes
# kernel, shape of the codes, what is added to them, dtype, query heads of 8 KV heads, blocks, blocks asked for
CELLS = (
    ("coded", CodeShape(num_subspaces=64, nbits=4), (), "float16", 16, 4, (5, 6)),
    ("plain", CodeShape(bits=4), (), "float32", 8, 8, (9,)),
    ("coded", CodeShape(bits=4), (), "float16", 32, 4, (5,)),
    ("coded", CodeShape(bits=4), RECIPE, "float16", 32, 4, (5,)),
    ("coded", CodeShape(bits=2), (), "float16", 32, 4, (5,)),
    ("exact", None, (), "float16", 32, 3, (4, 5)),
    ("exact", None, (), "bfloat16", 32, 3, (4,)),
    ("exact", None, (), "float16", 64, 2, (3, 4)),
)


@contextmanager
def bounded(kernel: str, blocks: int) -> Iterator[None]:
    """So many blocks asked of the kernel of this name while this lasts, none with 0; all others as they are."""
    plain = steps.compiled

    def compiled(factory: Callable[[Any], Any], variant: Any) -> object:  # noqa: ANN401 - of any kernel
        return plain(factory, replace(variant, blocks=blocks) if factory.__name__ == f"{kernel}_kernel" else variant)

    steps.compiled = compiled
    try:
        yield
    finally:
        steps.compiled = plain


def within(kernel: str, blocks: int, call: Callable[[], object]) -> Callable[[], object]:
    def run() -> object:
        with bounded(kernel, blocks):
            return call()

    return run


def measure(rounds: int, batch: int = 8, context: int = 32768) -> list[dict[str, Any]]:
    device, found = torch.device("cuda"), []
    for kernel, codes, served, dtype, heads, blocks, asked in CELLS:
        config = BenchConfig(heads=heads, kv_heads=8, head_dim=128, dtype=dtype, served=served)
        shape = codes and code_geometry(codes, config.head_dim)
        chosen = choose_backend("cuda", device, getattr(torch, dtype), fallback=False)
        first = decode_inputs(config, context, batch, shape, 0, device)
        more = range(1, copies_beyond_cache(first.read, device))
        cases = [first, *(decode_inputs(config, context, batch, shape, i, device) for i in more)]
        calls = [backend_call(chosen, case, config.head_dim**-0.5, None) for case in cases]
        asking = {str(blocks): 0} | {str(n): n for n in asked}
        runners = [Contestant(name, [within(kernel, n, call) for call in calls]) for name, n in asking.items()]
        timings = race(runners, rounds, always=[runner.name for runner in runners], device=device)
        base = timings[str(blocks)].seconds
        for name, timing in timings.items():
            ratios = sorted(own / of for own, of in zip(timing.seconds, base, strict=True))
            found.append(
                {
                    "kernel": kernel, "codes": f"{shape[0]} of {shape[1]} bits" if shape else "",
                    "recipe": bool(served), "dtype": dtype, "heads": heads, "blocks": int(name),
                    "step_us": round(1e6 * statistics.median(timing.seconds), 2),
                    "times": round(statistics.median(ratios), 4), "low": round(ratios[len(ratios) // 20], 4),
                    "high": round(ratios[-1 - len(ratios) // 20], 4),
                }
            )  # fmt: skip
            print(found[-1], flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--rounds", type=int, default=21)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no NVIDIA GPU here: run where there is one, on a torch for CUDA")
    keep("launch_bounds", {"rounds": given.rounds}, given.output, lambda: measure(given.rounds))
