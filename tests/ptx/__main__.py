"""PTX on the command line: `cd tests && python -m ptx FILE` loads every kernel of a file, and refuses by its line what
it does not know; `--run GRID BLOCK` also launches one, on arguments of its own making.

An argument is a number, or ELEMENTS:TYPE for a buffer (float32, int32, ...) of random content: 64:float32. The launch
says how many statements ran, and of each buffer that was written how it begins.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from ptx import GlobalMemory, PtxFault, launch, load
from ptx.syntax import parse


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m ptx", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--kernel", help="its name, or a part that only one has")
    parser.add_argument("--forms", action="store_true", help="count the forms of its instructions")
    parser.add_argument("--run", nargs=2, metavar=("GRID", "BLOCK"), help="such as 4,2 128")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("argument", nargs="*", help="of the kernel: a number, or ELEMENTS:TYPE")
    asked = parser.parse_intermixed_args(arguments)  # numbers may follow options
    try:
        return _execute(asked)
    except (PtxFault, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _execute(asked):
    text = asked.file.read_text(encoding="utf-8")
    entries = parse(text).entries
    names = [name for name in entries if asked.kernel is None or asked.kernel in name]
    if not names:
        raise ValueError("no such kernel")
    programs = {name: load(text, name) for name in names}
    for name, program in programs.items():
        print(f"{name}: {len(program.steps)} statements, {len(program.parameters)} parameters")
        if asked.forms:
            for form, count in sorted(Counter(one.opcode for one in program.statements).items()):
                print(f"{count:6} {form}")
    if asked.run is None:
        return 0
    if len(names) != 1:
        raise ValueError(f"{len(names)} kernels: --kernel says which one to run")
    memory, values, buffers = GlobalMemory(), [], []
    draw = np.random.default_rng(asked.seed)
    for i, one in enumerate(asked.argument):
        count, _, dtype = one.partition(":")
        if not dtype:
            values.append(int(count, 0))
            continue
        data = draw.standard_normal(int(count)).astype(dtype)
        buffers.append((i, data, data.copy()))
        values.append(memory.add(data, f"argument {i}"))
    grid, block = tuple(map(int, asked.run[0].split(","))), int(asked.run[1])
    done = launch(programs[names[0]], grid, block, values, memory, seed=asked.seed)
    print(f"{done.steps} statements ran")
    for i, data, before in buffers:
        if data.tobytes() != before.tobytes():
            print(f"argument {i}: {data[:8]}{' ...' if len(data) > 8 else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
