"""Branches, barriers, ends."""

import numpy as np

from ptx.faults import BadBarrier
from ptx.instructions.table import form, guard_of
from ptx.warp import BARRIER, REGROUP


@form("bra", "bra.uni", guarded=True)
def _branch(one):
    one.expect(1)
    target, after, uniform = one.label(one.operands[0]), one.pc + 1, one.parts[-1] == "uni"
    if one.statement.guard is None:
        return lambda warp: target
    guard = guard_of(one)
    one.effect.decides = True

    def run(warp):
        taken = guard(warp)
        if not taken.any():
            return None
        rest = warp.mask & ~taken
        if not rest.any():
            return target
        if uniform:
            raise BadBarrier("lanes part at a branch that is said to be uniform")
        warp.diverge(target, taken)
        warp.diverge(after, rest)
        return REGROUP

    return run


@form("ret", "exit", guarded=True)
def _end(one):
    one.expect(0)
    guard, after = guard_of(one), one.pc + 1
    one.effect.decides = True

    def run(warp):
        ending = guard(warp)
        warp.leave(ending)
        warp.diverge(after, warp.mask & ~ending)
        return REGROUP

    return run


@form("call", "call.uni")
def _call(one):
    """Device functions of kernels are written out where they are called, so that arrays stay in registers."""
    one.refuse("calls are not known: functions are to be written out (forceinline=True)")


@form("bar.sync")
def _barrier(one):
    """Of all threads. A warp arrives as a whole."""
    one.expect(1)
    if one.operands[0] != "0":
        one.refuse("barriers other than 0")
    if one.statement.guard is not None:
        one.refuse("a barrier under a guard")

    def run(warp):
        if warp.groups or not np.array_equal(warp.mask, warp.live):
            raise BadBarrier("lanes of one warp part at a barrier")
        return BARRIER

    return run
