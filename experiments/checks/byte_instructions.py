"""Instructions of look-ups in byte tables on processors that need not be there, counted in what LLVM assembles:

python experiments/checks/byte_instructions.py FILE.csv

Per 64 tokens and subspace of four query heads, in the innermost loops of keys and of values; `on_stack` is how many of
them touch the stack.
"""

import sys
from collections.abc import Iterator

import llvmlite.binding as llvm
import pandas as pd

from pqkv.kernels.cpu.byte_lookups.assembly import instructions, key_loops, value_loops
from pqkv.kernels.cpu.byte_lookups.avx2 import Avx2
from pqkv.kernels.cpu.byte_lookups.avx512 import Avx512
from pqkv.kernels.cpu.byte_lookups.shapes import Shape

HEADS = 4
GEOMETRIES = ((8, 2), (8, 4), (6, 2), (4, 1), (4, 2))  # nbits, d_sub
PROCESSORS = {Avx512: ("znver4", "sapphirerapids"), Avx2: ("znver3", "haswell")}


def rows() -> Iterator[dict[str, object]]:
    """A row a processor and geometry; AVX2 has no look-up among 256 entries."""
    for path, processors in PROCESSORS.items():
        for cpu in processors:
            for nbits, d_sub in GEOMETRIES:
                if path is Avx2 and nbits == 8:
                    continue
                shape = Shape(nbits, d_sub, HEADS)
                keys, values = key_loops(path, shape, cpu), value_loops(path, shape, cpu)
                yield {
                    "path": path.name,
                    "processor": cpu,
                    "nbits": nbits,
                    "d_sub": d_sub,
                    "keys": round(instructions(keys, parts=True), 1),
                    "values": round(instructions(values, parts=False), 1),
                    "keys_on_stack": sum(loop.on_stack for loop in keys),
                    "values_on_stack": sum(loop.on_stack for loop in values),
                    "llvm": ".".join(map(str, llvm.llvm_version_info)),
                }


if __name__ == "__main__":
    pd.DataFrame(rows()).to_csv(sys.argv[1], index=False)
