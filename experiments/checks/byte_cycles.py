"""Cycles of look-ups in byte tables on this processor, where nothing waits for memory:

python experiments/checks/byte_cycles.py FILE.csv

Per 64 tokens and subspace of a group of query heads, keys (one block of 64 tokens again and again) and values (one
span), heads of 128, what they read in a first- or second-level cache. Cycles are told by a chain of additions that is
timed beside them in every round, so a clock that changes does not matter; what other machines on the same cores take
does: medians of 31 rounds. `planes` is of how many bytes queries and weights are. Copied into an older checkout and run
there it counts that one's; a commit with a + had changes.
"""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import llvmlite.binding as llvm
import numpy as np
import pandas as pd
from llvmlite import ir
from numba.core import cgutils

from pqkv.cpu_path import CpuPath, cpu_path
from pqkv.env import environment, git_state, machine_name
from pqkv.kernels.cpu.byte_lookups.assembly import key_module, optimized, value_module
from pqkv.kernels.cpu.byte_lookups.instructions import Value
from pqkv.kernels.cpu.byte_lookups.intrinsics import emitter_of
from pqkv.kernels.cpu.byte_lookups.shapes import SPAN, Shape

HEAD_DIM, ROUNDS, CHAIN = 128, 31, 8
GEOMETRIES = ((8, 2, 4), (8, 4, 4), (6, 2, 4), (4, 1, 4), (4, 2, 4), (8, 2, 1), (8, 2, 8))  # nbits, d_sub, heads
I64 = ir.IntType(64)


def compiled(module: Value) -> Callable[..., None]:
    """`many` of a module, on this processor."""
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    engine = llvm.create_mcjit_compiler(optimized(llvm.parse_assembly(str(module)), machine), machine)
    engine.finalize_object()
    address = engine.get_function_address("many")

    def call(*given: int, kept: object = engine) -> None:
        ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(given))(address)(*given)

    return call


def repeated(module: Value) -> Value:
    """The module with `many(n, ...)`: `run` n times."""
    run = module.get_global("run")
    run.attributes.add("noinline")
    many = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64, *run.function_type.args]), "many")
    builder = ir.IRBuilder(many.append_basic_block())
    with cgutils.for_range(builder, many.args[0]):
        builder.call(run, many.args[1:])
    builder.ret_void()
    return module


def chain() -> Value:
    """A module with `many(n)`: n times `CHAIN` additions that wait for each other, a cycle each."""
    module = ir.Module()
    many = ir.Function(module, ir.FunctionType(ir.VoidType(), [I64]), "many")
    builder = ir.IRBuilder(many.append_basic_block())
    total = cgutils.alloca_once_value(builder, I64(0))
    add = ir.InlineAsm(ir.FunctionType(I64, [I64]), "\n".join(["add $$1, $0"] * CHAIN), "=r,0", side_effect=True)
    with cgutils.for_range(builder, many.args[0]):
        builder.store(builder.call(add, [builder.load(total)]), total)
    builder.ret_void()
    return module


def seconds(call: Callable[..., None], *given: int) -> float:
    start = time.perf_counter()
    call(*given)
    return time.perf_counter() - start


class Room:
    """Memory for what is read and written, of whole pages, alive as long as this is."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def of(self, size: int, fill: int = 1) -> int:
        """The address of so many bytes."""
        array = np.full(size + 4096, fill, np.uint8)
        self._arrays.append(array)
        address: int = array.ctypes.data
        return address + -address % 4096


def measured(module: Value, given: list[int], calls: int, clock: Callable[..., None]) -> float:
    """Cycles of one call."""
    many = compiled(repeated(module))
    count = len(module.get_global("run").args)
    found = []
    for _ in range(ROUNDS):
        cycle = seconds(clock, 20_000) / (20_000 * CHAIN)
        found.append(seconds(many, calls, *given[:count]) / calls / cycle)
    return statistics.median(found)


def row(path: str, planes: int, shape: Shape, clock: Callable[..., None]) -> dict[str, object]:
    """Both sides of a geometry."""
    room, emitter = Room(), emitter_of(path, planes)
    line, M = 8 * shape.nbits, HEAD_DIM // shape.d_sub
    draw = np.random.default_rng(0)
    codes = draw.integers(0, 256, SPAN * M * line, dtype=np.uint8)
    table, small = room.of(HEAD_DIM * shape.entries), [room.of(4 * HEAD_DIM * shape.heads) for _ in range(3)]
    scores = room.of(4 * 64 * shape.heads)
    keys = [codes.ctypes.data, line, HEAD_DIM, table, *small, scores, codes.ctypes.data, codes.ctypes.data]
    places = np.arange(SPAN + 1, dtype=np.int64) * M * line
    asked = places + codes.ctypes.data
    weights, sums = room.of(SPAN * shape.heads * 128), room.of(4 * HEAD_DIM * shape.heads * emitter.lanes, 0)
    groups = SPAN // emitter.scaled
    values = [
        codes.ctypes.data,
        places.ctypes.data,
        groups,
        line,
        HEAD_DIM,
        table,
        weights,
        small[0],
        sums,
        asked.ctypes.data,
    ]
    return {
        "path": path,
        "planes": planes,
        "nbits": shape.nbits,
        "d_sub": shape.d_sub,
        "heads": shape.heads,
        "keys": round(measured(key_module(emitter, shape), keys, 400, clock) / M, 1),
        "values": round(measured(value_module(emitter, shape), values, 40, clock) / (SPAN * M), 1),
    }


def rows() -> Iterator[dict[str, object]]:
    """A row a form and geometry that this processor's path serves."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.initialize_native_asmparser()
    clock = compiled(chain())
    here = {"machine": machine_name({**environment(), "gpus": []}), "llvm": ".".join(map(str, llvm.llvm_version_info))}
    state = git_state()
    here["commit"] = state["commit"][:12] + ("+" if state["dirty"] else "")
    for planes in (2, 1):
        for shape in (Shape(*geometry) for geometry in GEOMETRIES):
            if CpuPath(cpu_path().name, "asked for").serves(shape.nbits):
                yield row(cpu_path().name, planes, shape, clock) | here


if __name__ == "__main__":
    pd.DataFrame(rows()).to_csv(sys.argv[1], index=False)
