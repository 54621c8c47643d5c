"""One decoding step on random pages, to be looked at by a profiler of kernels:

    ncu --csv --page raw --metrics ... -k "regex:coded|exact|merge" python experiments/gpu/profile_step.py --bits 4

Warms up (compiles) first, so `--profile-from-start off` sees the one step alone.
"""

from __future__ import annotations

import argparse

import torch

from pqkv.codec import code_geometry
from pqkv.config import BenchConfig, CodeShape
from pqkv.kernels import choose_backend
from pqkv.speed.bench import backend_call
from pqkv.speed.synthetic import decode_inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=float, default=4.0, help="0: exact pages")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=32768)
    parser.add_argument("--encode", action="store_true", help="seal pages instead")
    given = parser.parse_args()
    config = BenchConfig(backend="cuda", dtype="float16", heads=given.heads, kv_heads=given.kv_heads)
    shape = code_geometry(CodeShape(bits=given.bits), config.head_dim) if given.bits else None
    device = torch.device("cuda")
    case = decode_inputs(config, given.context, given.batch, shape, 0, device)
    backend = choose_backend("cuda", device, torch.float16, fallback=False)
    step = backend_call(backend, case, config.head_dim**-0.5, None)
    if given.encode and shape is not None:
        from pqkv.speed.encoding import encoding_contestants

        step = encoding_contestants(config, shape, device)[0].calls[0]
    step()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    step()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


if __name__ == "__main__":
    main()
