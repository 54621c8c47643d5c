"""Loads and stores, and copies from global to shared memory that land when they are waited for."""

import numpy as np

from ptx.faults import PtxFault
from ptx.instructions.table import form
from ptx.scalars import LANES, SCALARS, unwritten

_TYPES = ("b8", "u8", "s8", "b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64")
_VECTORS = {"": 1, "v2.": 2, "v4.": 4}


def _register_all():
    for kind in _TYPES:
        form(f"ld.param.{kind}")(lambda one, k=kind: _load_parameter(one, k))
        for vector, count in _VECTORS.items():
            if count * SCALARS[kind].bits > 128:
                continue
            for space in ("global", "global.nc", "shared", "local"):
                form(f"ld.{space}.{vector}{kind}")(
                    lambda one, k=kind, n=count, s=space: _load(one, SCALARS[k], n, _READ[s])
                )
                if space != "global.nc":
                    form(f"st.{space}.{vector}{kind}")(
                        lambda one, k=kind, n=count, s=space: _store(one, SCALARS[k], n, _WRITTEN[s])
                    )


def _load_parameter(one, kind):
    one.expect(2)
    write = one.target(one.operands[0], SCALARS[kind], wider=True)
    name, scalar = one.parameter(one.operands[1])
    if scalar.bits != SCALARS[kind].bits:
        one.refuse("a parameter is not read whole")
    return lambda warp: write(warp, warp.block.launch.parameters[name])


def _from_global(warp, addresses, size, count, lanes):
    return warp.block.launch.memory.load(addresses, size, count, warp.everywhere[lanes])


def _from_constant_global(warp, addresses, size, count, lanes):
    return warp.block.launch.memory.load(addresses, size, count, warp.everywhere[lanes], read_only=True)


def _from_shared(warp, addresses, size, count, lanes):
    return warp.block.shared.load(addresses, size, count, warp.number)


def _from_local(warp, addresses, size, count, lanes):
    return warp.local.load(addresses, size, count, lanes)


def _to_global(warp, addresses, values, lanes):
    warp.block.launch.memory.store(addresses, values, warp.everywhere[lanes])


def _to_shared(warp, addresses, values, lanes):
    warp.block.shared.store(addresses, values, warp.number)


def _to_local(warp, addresses, values, lanes):
    warp.local.store(addresses, values, lanes)


_READ = {
    "global": _from_global, "global.nc": _from_constant_global, "shared": _from_shared, "local": _from_local,
}  # fmt: skip
_WRITTEN = {"global": _to_global, "shared": _to_shared, "local": _to_local}


def _load(one, scalar, count, read):
    one.expect(2)
    targets = one.vector(one.operands[0])
    if len(targets) != count:
        one.refuse(f"{len(targets)} registers for {count} elements")
    writes = [one.target(operand, scalar, wider=True) for operand in targets]
    address, size, stored = one.address(one.operands[1]), scalar.size, scalar.stored
    one.effect.decides = True

    def run(warp):
        addresses = address(warp.registers)
        if warp.mask.all():
            found = read(warp, addresses, size, count, _ALL)
        else:
            lanes = np.flatnonzero(warp.mask)
            found = np.repeat(unwritten(stored)[:, None], count, 1)
            found[lanes] = read(warp, addresses[lanes], size, count, lanes)
        for i, write in enumerate(writes):
            write(warp, found[:, i].copy())

    return run


def _store(one, scalar, count, write):
    one.expect(2)
    sources = one.vector(one.operands[1])
    if len(sources) != count:
        one.refuse(f"{len(sources)} registers for {count} elements")
    reads = [one.source(operand, scalar, wider=True) for operand in sources]
    address, stored = one.address(one.operands[0]), scalar.stored
    one.effect.decides = True

    def run(warp):
        addresses = address(warp.registers)
        values = np.stack([read(warp.registers).view(stored) for read in reads], -1)
        if warp.mask.all():
            write(warp, addresses, values, _ALL)
        else:
            lanes = np.flatnonzero(warp.mask)
            write(warp, addresses[lanes], values[lanes], lanes)

    return run


_ALL = np.arange(LANES)


def _copy(one):
    """Until the wait the words have no content, and are this warp's alone."""
    one.expect(3)
    size = one.operands[2]
    if size not in (("16",) if "cg" in one.parts else ("4", "8", "16")):
        one.refuse(f"copies of {size} bytes")
    size = int(size)
    into, source = one.address(one.operands[0]), one.address(one.operands[1])
    one.effect.decides = True

    def run(warp):
        lanes = np.flatnonzero(warp.mask)
        targets, sources = into(warp.registers)[lanes], source(warp.registers)[lanes]
        warp.block.launch.memory.load(sources, 4, size // 4, warp.everywhere[lanes])  # is it there at all?
        if (sources % np.uint64(size)).any():
            raise PtxFault(f"a copy of {size} bytes from an address that is no multiple of them")
        warp.block.shared.spoil(targets, size, warp.number)
        warp.copies.append((lanes, targets, sources, size))

    return run


form("cp.async.cg.shared.global", "cp.async.ca.shared.global")(_copy)


@form("cp.async.wait_all")
def _wait(one):
    one.expect(0)

    def run(warp):
        """Threads wait for their own copies, not for those of other lanes."""
        late = []
        for lanes, targets, sources, size in warp.copies:
            mine = warp.mask[lanes]
            if mine.any():
                values = warp.block.launch.memory.load(sources[mine], 4, size // 4, warp.everywhere[lanes[mine]])
                warp.block.shared.store(targets[mine], values, warp.number)
            if not mine.all():
                late.append((lanes[~mine], targets[~mine], sources[~mine], size))
        warp.copies = late

    return run


_register_all()
