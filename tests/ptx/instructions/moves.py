"""mov, with words taken apart and put together; addresses from one space to another."""

import numpy as np

from ptx.instructions.table import compute, form
from ptx.scalars import SCALARS


def _register_all():
    for kind in ("pred", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"):
        form(f"mov.{kind}")(lambda one, k=kind: _move(one, k))
    for space in ("global", "shared", "local"):
        # addresses of every space are the numbers that the executor gave them, generic ones included
        if space == "global":
            form(f"cvta.to.{space}.u64")(lambda one: compute(one, "u64", ("u64",), lambda address: address))


def _move(one, kind):
    one.expect(2)
    target, source = one.operands
    if target.startswith("{"):
        return _apart(one, kind)
    if source.startswith("{"):
        return _together(one, kind)
    return compute(one, kind, (kind,), lambda value: value)


def _apart(one, kind):
    """The lowest bits first."""
    parts = one.vector(one.operands[0])
    part = SCALARS[f"b{SCALARS[kind].bits // len(parts)}"]
    writes = [one.target(operand, part) for operand in parts]
    read = one.source(one.operands[1], SCALARS[kind])

    def run(warp):
        values = np.ascontiguousarray(read(warp.registers)).view(part.stored).reshape(-1, len(parts))
        for i, write in enumerate(writes):
            write(warp, values[:, i].copy())

    return run


def _together(one, kind):
    parts = one.vector(one.operands[1])
    part = SCALARS[f"b{SCALARS[kind].bits // len(parts)}"]
    write = one.target(one.operands[0], SCALARS[kind])
    reads = [one.source(operand, part) for operand in parts]
    stored = SCALARS[kind].stored
    return lambda warp: write(warp, np.stack([read(warp.registers) for read in reads], -1).view(stored).reshape(-1))


_register_all()
