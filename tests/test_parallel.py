"""Units of work on torch's threads: each done once, by as many threads as torch has, whoever else calls."""

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref

import numpy as np
import pytest
import torch

from pqkv import parallel
from pqkv.compiled import compiled
from pqkv.parallel import run_units
from pqkv.thread_code import next_unit, on_threads

MUCH = 1e6  # microseconds that a call pretends to have to do


@compiled(nogil=True)
def count(launch, threads, taken, times, calls, spin, room):
    """times[job] += 1 for each unit, after some work; calls[0] is how many threads were asked to take part."""
    return on_threads(launch, threads, _count_units, (taken, times, calls, spin, room))


@compiled()
def _count_units(taken, times, calls, spin, room):
    next_unit(calls)
    job = next_unit(taken)
    while job < len(times):
        x = 1.0 + 0.0 * len(np.empty(room))
        for i in range(spin):
            x = x * 0.999 + i
        times[job] += 1 if x > 0 else 0
        job = next_unit(taken)


def run(units, microseconds=MUCH, spin=100, room=1):
    """How often each unit was done, and by how many threads at most."""
    times, calls = np.zeros(units, np.int64), np.zeros(1, np.int64)
    run_units(count, units, microseconds, times, calls, spin, room)
    return times, int(calls[0])


@pytest.fixture(params=["OpenMP", "Python"])
def threads(request, monkeypatch):
    """Sets how many threads torch has; they are torch's own, or Python's where those cannot be had."""
    if request.param == "Python":
        monkeypatch.setattr(parallel._TEAM, "address", 0)
    elif not parallel._TEAM.address:
        pytest.skip("torch has no OpenMP with the names of GCC's here")
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_torchs_own_threads_are_found_where_torch_was_built_with_gccs_openmp():
    if sys.platform == "linux" and torch.backends.openmp.is_available():
        assert parallel._TEAM.address


@pytest.mark.parametrize("count_", [1, 2, 3, 8])
@pytest.mark.parametrize("units", [0, 1, 2, 7, 1000])
def test_every_unit_is_done_once(threads, count_, units):
    threads(count_)
    assert (run(units)[0] == 1).all()


def test_torchs_number_of_threads_is_followed_at_each_call(threads):
    for wanted in (3, 1, 2):
        threads(wanted)
        times, calls = run(64, spin=100_000)
        assert (times == 1).all()
        assert 1 <= calls <= wanted
        assert torch.get_num_threads() == wanted


@pytest.mark.parametrize(("units", "microseconds"), [(1, MUCH), (12, 10.0)])
def test_what_is_too_little_for_two_threads_stays_on_the_callers(threads, units, microseconds):
    threads(4)
    assert run(units, microseconds)[1] == 1


def test_many_callers_at_once_each_get_all_of_their_units(threads):
    threads(3)
    wrong = []

    def call():
        wrong.extend(1 for _ in range(50) if not (run(64, spin=200)[0] == 1).all())

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.parametrize("wanted", [1, 2])
def test_memory_that_a_thread_does_not_get_is_the_callers_error_and_the_next_call_works(threads, wanted):
    threads(wanted)
    with pytest.raises(MemoryError):
        run(8, room=1 << 55)
    assert (run(8)[0] == 1).all()


def test_a_call_that_has_ended_keeps_no_arrays(threads):
    threads(3)
    times = np.zeros(64, np.int64)
    alive = weakref.ref(times)
    run_units(count, len(times), MUCH, times, np.zeros(1, np.int64), 10_000, 1)
    del times
    gc.collect()
    assert alive() is None


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
    """OpenMP's stay with the parent: a child that waited for them would hang."""
    done = run_python(PREAMBLE + """
pid = os.fork()
if pid == 0:
    os._exit(0 if torch.equal(nearest(x, c), expected) and threading.active_count() == 2 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert torch.equal(nearest(x, c), expected)
""")  # fmt: skip
    assert done.returncode == 0, done.stderr


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
