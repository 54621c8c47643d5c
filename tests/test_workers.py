"""Sleeping Python threads: each part of a call is done once, by whoever is free, and by the caller if nobody is."""

import gc
import subprocess
import sys
import threading
import time
import weakref

import pytest

from pqkv.workers import share


class Recorder:
    """Takes units as a compiled function does, and notes on which threads."""

    def __init__(self, units, act=lambda job: None):
        self.units, self.act, self.threads, self.done = units, act, set(), []
        self.lock, self.taken = threading.Lock(), 0

    def __call__(self):
        while True:
            with self.lock:
                job, self.taken = self.taken, self.taken + 1
            if job >= self.units:
                return
            self.threads.add(threading.get_ident())
            self.done.append(job)
            self.act(job)


def nap(job):
    time.sleep(0.02)


@pytest.mark.parametrize("others", [0, 1, 3])
def test_that_many_other_threads_take_part_beside_the_caller(others):
    work = Recorder(16, nap)
    share(work, others)
    assert sorted(work.done) == list(range(16))
    assert len(work.threads) == others + 1
    assert threading.get_ident() in work.threads


@pytest.mark.parametrize("who", ["caller", "worker"])
def test_what_a_thread_raises_reaches_the_caller_and_the_next_call_works(who):
    own = threading.get_ident()

    def fail(job):
        nap(job)
        if (threading.get_ident() == own) == (who == "caller"):
            raise MemoryError("too many scores")

    with pytest.raises(MemoryError, match="too many scores"):
        share(Recorder(8, fail), 1)
    work = Recorder(8, nap)
    share(work, 1)
    assert sorted(work.done) == list(range(8))


def test_a_call_that_has_ended_keeps_nothing():
    work = Recorder(8, nap)
    alive = weakref.ref(work)
    share(work, 3)
    del work
    gc.collect()
    assert alive() is None


def test_a_thread_that_comes_too_late_is_not_waited_for():
    """The workers are held by another call; this one does all of its units itself."""
    release = threading.Event()
    other = Recorder(64, lambda job: release.wait(10))
    callers = [threading.Thread(target=share, args=(other, 1)) for _ in range(8)]
    try:
        for caller in callers:
            caller.start()
        while len(other.threads) <= len(callers):  # until a worker is held too
            time.sleep(0.001)
        work, start = Recorder(4), time.monotonic()
        share(work, 1)
        assert sorted(work.done) == [0, 1, 2, 3]
        assert time.monotonic() - start < 5
    finally:
        release.set()
        for caller in callers:
            caller.join()


def test_sleeping_threads_do_not_keep_the_process():
    program = (
        "from pqkv.workers import share; import threading; share(lambda: None, 3); print(threading.active_count())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "4"), done.stderr
