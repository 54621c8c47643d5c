"""Threads of Numba's simulator as greenlets, some twenty times as fast as its own.

Its own are threads of Python that hand over to each other by way of the operating system at every barrier and exchange,
while a loop asks each whether it waits. Here one thread of Python runs them all, each until it waits or ends. Who waits
at a barrier goes on in a random order, the same in every run: a barrier too few shows, whichever lane would come first.
"""

import threading
from random import Random

import numpy as np
from greenlet import getcurrent, greenlet
from numba.cuda.simulator import kernel, kernelapi

from pqkv.kernels.cuda import simulated


class Lane(greenlet):
    """What kernels and the simulator ask of the thread that they are in."""

    def __init__(self, function, manager, block, place):
        super().__init__(function)
        self._manager, self.blockIdx, self.threadIdx = manager, block, place
        size = kernel.Dim3(*manager._block_dim)
        self.thread_id = place.x + size.x * (place.y + size.y * place.z)

    def syncthreads(self):
        self._manager.at_barrier.append(self)
        self.parent.switch()


class Meeting:
    """A `threading.Barrier` of lanes."""

    def __init__(self, parties):
        self.parties, self.waiting = parties, []

    def wait(self, timeout=None):
        lane = getcurrent()
        if len(self.waiting) + 1 < self.parties:
            self.waiting.append(lane)
            lane.parent.switch()
        else:
            lane._manager.ready += self.waiting
            self.waiting.clear()


def run(manager, grid_point, *arguments):
    """In place of `BlockManager.run`: one block. As on a GPU, a barrier does not wait for lanes that have ended."""
    block, order = kernel.Dim3(*grid_point), Random(0)
    places = [kernel.Dim3(*place) for place in np.ndindex(*manager._block_dim)]
    lanes = [Lane(lambda: manager._f(*arguments), manager, block, place) for place in places]
    manager.ready, manager.at_barrier = lanes[:], []
    while manager.ready:
        going, manager.ready = manager.ready, []
        order.shuffle(going)
        for lane in going:
            try:
                lane.switch()
            except Exception as error:
                error.add_note(f"in thread {lane.thread_id} of block {tuple(grid_point)}")
                raise
        if not manager.ready:
            living = [lane for lane in lanes if not lane.dead]
            if len(living) > len(manager.at_barrier):
                raise RuntimeError(f"block {tuple(grid_point)}: lanes wait for an exchange with one that never comes")
            manager.ready, manager.at_barrier = manager.at_barrier, []


class Threading:
    """The module `threading`, to whom asks from within a kernel."""

    current_thread = staticmethod(getcurrent)
    Barrier = Meeting

    def __getattr__(self, name):
        return getattr(threading, name)


def take_over():
    kernel.BlockManager.run = run
    kernelapi.threading = simulated.threading = Threading()
