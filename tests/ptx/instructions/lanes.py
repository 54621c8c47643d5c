"""Words handed from lane to lane of a warp."""

import numpy as np

from ptx.faults import PtxFault
from ptx.instructions.table import form
from ptx.scalars import LANES, NOBODY, SCALARS

_LANE = np.arange(LANES)


def _exchange(one):
    """The source lane by mode; where it lies outside the segment, a lane keeps its own value."""
    one.expect(5)
    target, *predicate = one.operands[0].split("|")
    write = one.target(target, SCALARS["b32"])
    inside = one.target(predicate[0], SCALARS["pred"]) if predicate else None
    value, by, clamp, members = (one.source(operand, SCALARS["b32"]) for operand in one.operands[1:])
    slot = one.effect.targets[0]
    one.effect.decides = True
    mode = one.parts[2]

    def run(warp):
        registers = warp.registers
        named = members(registers)
        own = (named >> _LANE.astype(np.uint32)) & np.uint32(1)
        if not own[warp.mask].all():
            raise PtxFault("a lane exchanges that is not in its own mask")
        source, valid = _source(mode, by(registers).astype(np.int64), clamp(registers).astype(np.int64))
        source = np.where(valid, source, _LANE)
        moved = value(registers)[source]
        lost = warp.mask & (~warp.mask[source] | (((named >> source.astype(np.uint32)) & np.uint32(1)) == 0))
        if lost.any():
            moved = np.where(lost, np.uint32(NOBODY[4]), moved)
            warp.poison[slot] = lost | (warp.poison.get(slot, np.zeros(LANES, bool)) & ~warp.mask)
        write(warp, moved)
        if inside is not None:
            inside(warp, valid)

    return run


def _source(mode, by, clamp):
    """(lane, whether it lies inside the segment) for each lane, as the PTX manual computes them."""
    by, bound, segment = by & 31, clamp & 31, (clamp >> 8) & 31
    most = (_LANE & segment) | (bound & ~segment)
    least = _LANE & segment
    if mode == "bfly":
        lane = _LANE ^ by
        return lane, lane <= most
    if mode == "down":
        return _LANE + by, _LANE + by <= most
    if mode == "up":
        return _LANE - by, _LANE - by >= most
    lane = least | (by & ~segment)
    return lane, lane <= most


form(*(f"shfl.sync.{mode}.b32" for mode in ("bfly", "idx", "up", "down")))(_exchange)
