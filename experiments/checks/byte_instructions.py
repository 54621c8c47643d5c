"""Instructions of look-ups in byte tables on processors that need not be there, counted in what LLVM assembles:

python experiments/checks/byte_instructions.py FILE.csv

Per 64 tokens and subspace of four query heads, in the innermost loops of keys and of values; `planes` is of how many
bytes queries and weights are, `on_stack` how many of the instructions touch the stack.
"""

import sys
from collections.abc import Iterator

import llvmlite.binding as llvm
import pandas as pd

from pqkv.kernels.cpu.byte_lookups.assembly import instructions, key_loops, value_loops
from pqkv.kernels.cpu.byte_lookups.avx2 import Avx2
from pqkv.kernels.cpu.byte_lookups.avx512 import Avx512
from pqkv.kernels.cpu.byte_lookups.instructions import Portable
from pqkv.kernels.cpu.byte_lookups.one_plane import Avx2OnePlane, Avx512OnePlane
from pqkv.kernels.cpu.byte_lookups.shapes import Shape

HEADS = 4
GEOMETRIES = ((8, 2), (8, 4), (6, 2), (4, 1), (4, 2))  # nbits, d_sub
PROCESSORS = {Avx512: ("znver4", "sapphirerapids"), Avx2: ("znver3", "haswell")}
FORMS = {2: {Avx512: Avx512, Avx2: Avx2}, 1: {Avx512: Avx512OnePlane, Avx2: Avx2OnePlane}}  # by planes


def rows() -> Iterator[dict[str, object]]:
    """A row a form, processor and geometry; AVX2 has no look-up among 256 entries."""
    for planes, paths in FORMS.items():
        for path, processors in PROCESSORS.items():
            for cpu in processors:
                for nbits, d_sub in GEOMETRIES:
                    if path is not Avx2 or nbits != 8:
                        yield _row(planes, paths[path], cpu, Shape(nbits, d_sub, HEADS))


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
