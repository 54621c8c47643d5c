"""A grid of blocks, one after another, and the warps of a block in a seeded random order from barrier to barrier."""

from dataclasses import dataclass, field
from itertools import product
from random import Random

import numpy as np

from ptx.faults import BadBarrier, PtxFault
from ptx.memory import GlobalMemory, SharedMemory
from ptx.program import Program
from ptx.scalars import LANES
from ptx.warp import Warp


@dataclass
class Launch:
    """What all blocks of a launch share."""

    program: Program
    grid: tuple[int, int, int]
    threads: int  # of a block, along x
    memory: GlobalMemory
    parameters: dict[str, np.ndarray]
    most_steps: int
    steps: int = field(default=0)  # statements executed, by all warps


class Block:
    """One block: its shared memory and its warps."""

    def __init__(self, launch, coordinates, number):
        self.launch, self.coordinates, self.number = launch, coordinates, number
        self.shared = SharedMemory(launch.program.shared_ranges, launch.program.shared_bytes)
        self.warps = [Warp(self, i) for i in range(-(-launch.threads // LANES))]

    def run(self, order):
        """Barriers wait for every thread of the block: one that has ended never comes."""
        running = list(self.warps)
        while running:
            order.shuffle(running)
            running = [warp for warp in running if warp.run()]
            arrived = sum(int(warp.live.sum()) for warp in running)
            if running and arrived != self.launch.threads:
                raise BadBarrier(
                    f"{arrived} of {self.launch.threads} threads arrive at a barrier in block {self.coordinates}"
                )
            self.shared.new_epoch()
        self.launch.steps += sum(warp.steps for warp in self.warps)


def launch(program, grid, threads, arguments, memory, *, seed=0, most_steps=2_000_000):
    """Run `program` on `memory`. `grid` has up to three axes; `arguments` are integers, addresses among them, one for
    each parameter. Raises `PtxFault` with the line at the first thing that a kernel may not do.
    """
    grid = (*grid, 1, 1, 1)[:3]
    if len(arguments) != len(program.parameters):
        raise PtxFault(f"{len(arguments)} arguments for {len(program.parameters)} parameters of {program.name}")
    parameters = {
        name: np.full(LANES, value % (1 << scalar.bits), scalar.stored)
        for (name, scalar), value in zip(program.parameters.items(), arguments, strict=True)
    }
    memory.new_launch()
    started = Launch(program, grid, threads, memory, parameters, most_steps)
    order = Random(seed)
    blocks = list(product(*(range(n) for n in grid)))
    order.shuffle(blocks)
    with np.errstate(all="ignore"):  # lanes that do not execute hold anything
        for coordinates in blocks:
            number = (coordinates[2] * grid[1] + coordinates[1]) * grid[0] + coordinates[0]
            Block(started, coordinates, number).run(order)
    return started
