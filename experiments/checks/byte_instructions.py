"""Instructions of look-ups in byte tables on processors that need not be there, counted in what LLVM assembles:

python experiments/checks/byte_instructions.py FILE.csv

Per 64 tokens and subspace of four query heads, in the innermost loops of keys and of values; `planes` is of how many
bytes queries and weights are, `on_stack` how many of the instructions touch the stack.
"""

import sys
from collections.abc import Iterator

import llvmlite.binding as llvm
import pandas as pd

from pqkv.cpu_path import CpuPath
from pqkv.kernels.cpu.byte_lookups.assembly import instructions, key_loops, value_loops
from pqkv.kernels.cpu.byte_lookups.instructions import Portable
from pqkv.kernels.cpu.byte_lookups.intrinsics import emitter_of
from pqkv.kernels.cpu.byte_lookups.shapes import Shape

HEADS = 4
GEOMETRIES = ((8, 2), (8, 4), (6, 2), (4, 1), (4, 2))  # nbits, d_sub
PROCESSORS = {
    "avx512": ("znver4", "sapphirerapids"),
    "avx2": ("znver3", "haswell", "alderlake", "cascadelake"),  # the last two to compare
    "vnni": ("alderlake", "cascadelake"),
}


def rows() -> Iterator[dict[str, object]]:
    """A row a form, processor and geometry, as far as a path serves it."""
    for planes in (2, 1):
        for path, processors in PROCESSORS.items():
            for cpu in processors:
                for nbits, d_sub in GEOMETRIES:
                    if CpuPath(path, "asked for").serves(nbits):
                        yield _row(planes, emitter_of(path, planes), cpu, Shape(nbits, d_sub, HEADS))


def _row(planes: int, path: type[Portable], cpu: str, shape: Shape) -> dict[str, object]:
    keys, values = key_loops(path, shape, cpu), value_loops(path, shape, cpu)
    return {
        "path": path.name,
        "planes": planes,
        "processor": cpu,
        "nbits": shape.nbits,
        "d_sub": shape.d_sub,
        "keys": round(instructions(keys, parts=True), 1),
        "values": round(instructions(values, parts=False), 1),
        "keys_on_stack": sum(loop.on_stack for loop in keys),
        "values_on_stack": sum(loop.on_stack for loop in values),
        "llvm": ".".join(map(str, llvm.llvm_version_info)),
    }


if __name__ == "__main__":
    pd.DataFrame(rows()).to_csv(sys.argv[1], index=False)
