"""Units of work on several threads: each done once, by as many threads as torch has, whoever else calls."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest
import torch

from pqkv.compiled import compiled
from pqkv.parallel import run_units
from pqkv.vector_code import next_unit

MUCH = 1e6  # microseconds that a call pretends to have to do


@compiled(nogil=True)
def count_units(taken, units, times, spin):
    """times[job] += 1 for each unit, after some work."""
    job = next_unit(taken)
    while job < units:
        x = 1.0
        for i in range(spin):
            x = x * 0.999 + i
        times[job] += 1 if x > 0 else 0
        job = next_unit(taken)


class Recorder:
    """Takes units as a compiled function does, and notes on which threads."""

    def __init__(self, units, act=lambda job: None):
        self.units, self.act, self.threads = units, act, set()
        self.lock, self.done = threading.Lock(), []

    def __call__(self, taken):
        while True:
            with self.lock:
                job, taken[0] = int(taken[0]), taken[0] + 1
            if job >= self.units:
                return
            self.threads.add(threading.get_ident())
            self.done.append(job)
            self.act(job)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def nap(job):
    time.sleep(0.02)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("units", [0, 1, 2, 7, 1000])
def test_every_unit_is_done_once(threads, count, units):
    threads(count)
    times = np.zeros(units, np.int64)
    run_units(count_units, units, MUCH, units, times, 100)
    assert (times == 1).all()


def test_as_many_threads_take_part_as_torch_has_at_each_call(threads):
    for count in (3, 1, 2):
        threads(count)
        work = Recorder(12, nap)
        run_units(work, 12, MUCH)
        assert sorted(work.done) == list(range(12))
        assert len(work.threads) == count
        assert threading.get_ident() in work.threads


@pytest.mark.parametrize(("units", "microseconds"), [(1, MUCH), (12, 10.0)])
def test_what_is_too_little_for_two_threads_stays_on_the_callers(threads, units, microseconds):
    threads(4)
    work = Recorder(units, nap)
    run_units(work, units, microseconds)
    assert work.threads == {threading.get_ident()}


def test_many_callers_at_once_each_get_all_of_their_units(threads):
    threads(3)
    results = [np.zeros(64, np.int64) for _ in range(6)]

    def call(times):
        for _ in range(50):
            run_units(count_units, len(times), MUCH, len(times), times, 200)

    callers = [threading.Thread(target=call, args=(times,)) for times in results]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert all((times == 50).all() for times in results)


@pytest.mark.parametrize("who", ["caller", "worker"])
def test_what_a_thread_raises_reaches_the_caller_and_the_next_call_works(threads, who):
    threads(2)
    own = threading.get_ident()

    def fail(job):
        nap(job)
        if (threading.get_ident() == own) == (who == "caller"):
            raise MemoryError("too many scores")

    with pytest.raises(MemoryError, match="too many scores"):
        run_units(Recorder(8, fail), 8, MUCH)
    work = Recorder(8, nap)
    run_units(work, 8, MUCH)
    assert sorted(work.done) == list(range(8))


def test_a_call_that_has_ended_keeps_no_arrays(threads):
    threads(3)
    times = np.zeros(64, np.int64)
    alive = weakref.ref(times)
    run_units(count_units, len(times), MUCH, len(times), times, 10_000)
    del times
    gc.collect()
    assert alive() is None


def test_a_thread_that_comes_too_late_is_not_waited_for(threads):
    """The workers are held by another call; this one does all of its units itself."""
    threads(2)
    release = threading.Event()
    other = Recorder(64, lambda job: release.wait(10))
    callers = [threading.Thread(target=run_units, args=(other, 64, MUCH)) for _ in range(8)]
    try:
        for caller in callers:
            caller.start()
        while len(other.threads) <= len(callers):  # until a worker is held too
            time.sleep(0.001)
        work, start = Recorder(4), time.monotonic()
        run_units(work, 4, MUCH)
        assert sorted(work.done) == [0, 1, 2, 3]
        assert time.monotonic() - start < 5
    finally:
        release.set()
        for caller in callers:
            caller.join()


def run_python(program, **environment):
    """Runs a program in a fresh process, for at most a minute."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


PREAMBLE = """
import os, threading
import numpy as np, torch
from pqkv.codec.nearest import nearest
torch.set_num_threads(2)
x = torch.randn(2, 4096, 16, generator=torch.Generator().manual_seed(0))
c = torch.randn(2, 4, 16, 4, generator=torch.Generator().manual_seed(1))
expected = nearest(x, c)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_has_threads_of_its_own():
    done = run_python(PREAMBLE + """
pid = os.fork()
if pid == 0:
    os._exit(0 if torch.equal(nearest(x, c), expected) and threading.active_count() == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert torch.equal(nearest(x, c), expected)
""")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_sleeping_threads_do_not_keep_the_process():
    done = run_python(PREAMBLE + "print(threading.active_count())")
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr


@pytest.mark.parametrize("layer", ["workqueue", "omp", "default"])
def test_two_python_threads_calling_kernels_at_once_end_well_on_any_threading_layer(layer):
    done = run_python(PREAMBLE + """
wrong = []
def call():
    for _ in range(100):
        if not torch.equal(nearest(x, c), expected):
            wrong.append(1)
callers = [threading.Thread(target=call) for _ in range(2)]
[t.start() for t in callers]
[t.join() for t in callers]
assert not wrong
""", NUMBA_THREADING_LAYER=layer)  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("set_by", ["OMP_NUM_THREADS", "torch.set_num_threads"])
def test_kernels_leave_torchs_number_of_threads_as_it_is(set_by):
    program = """
import torch
{0}
from pqkv.codec.nearest import nearest
nearest(torch.randn(2, 4096, 16), torch.randn(2, 4, 16, 4))
print(torch.get_num_threads())
"""
    how = "" if set_by == "OMP_NUM_THREADS" else "torch.set_num_threads(1)"
    environment = {"OMP_NUM_THREADS": "1"} if set_by == "OMP_NUM_THREADS" else {}
    done = run_python(program.format(how), NUMBA_NUM_THREADS="2", **environment)
    assert done.stdout.strip() == "1", done.stderr
