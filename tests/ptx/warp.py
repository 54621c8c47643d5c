"""32 threads that run one program: lanes diverge at branches, the group furthest behind goes first, groups that meet
at a statement go on together.
"""

import numpy as np

from ptx.faults import Poison, PtxFault, TooLong
from ptx.memory import LocalMemory
from ptx.scalars import LANES, unwritten

REGROUP, BARRIER = -1, -2  # what a statement returns that ends a run of statements, besides where to go on


class Warp:
    """Lanes of one block from `number` * 32 on. `mask` are those that execute now; `full` says that these are all that
    still run, so that nothing of the others needs to be kept.
    """

    def __init__(self, block, number):
        launch = block.launch
        self.program, self.block, self.number = launch.program, block, number
        first = number * LANES
        self.threads = np.arange(first, first + LANES)  # in the block
        self.everywhere = self.threads + block.number * launch.threads  # in the grid
        self.live = self.threads < launch.threads
        self.mask, self.full = self.live, True
        self.groups = {0: self.live.copy()}  # where lanes go on
        self.registers = [None] * self.program.slots
        self.poison = {}  # register -> lanes that hold what nobody wrote, where there are any
        self.copies = []  # cp.async not waited for: (lanes' addresses in shared memory, in global memory, bytes)
        self.local = LocalMemory(self.program.local_ranges, self.program.local_bytes)
        self.steps, self.pc = 0, 0
        for slot, value in self.program.constants:
            self.registers[slot] = value
        for slot, name in self.program.specials:
            self.registers[slot] = _special(self, name)

    def run(self):
        """Up to a barrier (True) or the end of all lanes (False)."""
        while self.groups:
            self.pc = min(self.groups)
            self.mask = self.groups.pop(self.pc)
            self.full = not self.groups
            try:
                if self._together(min(self.groups, default=len(self.program.steps))):
                    return True
            except PtxFault as fault:
                raise fault.at(self._place()) from None
            except (TypeError, AttributeError) as error:
                if all(self.registers[slot] is not None for slot in self.program.effects[self.pc].sources):
                    raise
                raise PtxFault("a register is read that nobody wrote", self._place()) from error
        return False

    def _together(self, limit):
        """The lanes of `mask` from `pc` on, to where they part, end or meet others, who wait at `limit` or further on;
        or to a barrier (True).
        """
        steps, most = self.program.steps, self.block.launch.most_steps
        while self.pc < limit:
            self.steps += 1
            if self.poison:
                self._spread(self.pc)
            result = steps[self.pc](self)
            if result is None:
                self.pc += 1
            elif result >= 0:
                self.pc = result
            elif result == REGROUP:
                return False
            else:
                self.groups[self.pc + 1] = self.mask
                return True
            if self.steps > most:
                raise TooLong(f"more than {most} statements in one warp")
        if self.pc >= len(steps):
            raise PtxFault("the program runs past its end")
        self.diverge(self.pc, self.mask)
        return False

    def write(self, slot, bits):
        """Into the lanes that execute."""
        if self.full:
            self.registers[slot] = bits
            return
        old = self.registers[slot]
        if old is None:
            old = unwritten(bits.dtype)
        self.registers[slot] = np.where(self.mask, bits, old)

    def diverge(self, pc, mask):
        """`mask` goes on at `pc`, with whoever waits there."""
        if mask.any():
            waiting = self.groups.get(pc)
            self.groups[pc] = mask if waiting is None else waiting | mask

    def leave(self, mask):
        """The end of these lanes."""
        self.live = self.live & ~mask

    def _spread(self, pc):
        """Poison of what the statement reads goes to what it writes; where it would decide something it is a fault."""
        effect = self.program.effects[pc]
        wrong = np.zeros(LANES, bool)
        for slot in effect.sources:
            if slot in self.poison:
                wrong |= self.poison[slot]
        if effect.select is not None:  # only the operand that is taken counts
            taken, other, chosen = effect.select
            none = np.zeros(LANES, bool)
            choice = self.registers[chosen]
            wrong = np.where(choice, self.poison.get(taken, none), self.poison.get(other, none))
            wrong |= self.poison.get(chosen, none)
        wrong &= self.mask
        if wrong.any() and effect.decides:
            raise Poison("the value of a lane that did not execute decides something")
        for slot in effect.targets:
            held = (self.poison.get(slot, np.zeros(LANES, bool)) & ~self.mask) | wrong
            if held.any():
                self.poison[slot] = held
            else:
                self.poison.pop(slot, None)

    def _place(self):
        statement = self.program.statements[self.pc] if self.pc < len(self.program.statements) else None
        at = f" in block {self.block.coordinates}, warp {self.number}, lanes {_ranges(self.mask)}"
        return at if statement is None else f"{at}; line {statement.line}: {statement.text}"


def _special(warp, name):
    """A register that the hardware sets, such as %tid.x."""
    launch = warp.block.launch
    values = {"%tid.x": warp.threads, "%tid.y": 0, "%tid.z": 0, "%laneid": warp.threads % LANES}
    for i, axis in enumerate("xyz"):
        values[f"%ntid.{axis}"] = (launch.threads, 1, 1)[i]
        values[f"%ctaid.{axis}"] = warp.block.coordinates[i]
        values[f"%nctaid.{axis}"] = launch.grid[i]
    return np.broadcast_to(np.asarray(values[name], np.uint32), LANES).copy()


SPECIALS = frozenset(
    f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"
) | {"%laneid"}  # fmt: skip


def _ranges(mask):
    lanes = np.flatnonzero(mask)
    if not len(lanes):
        return "none"
    parts = np.split(lanes, np.flatnonzero(np.diff(lanes) != 1) + 1)
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts)
