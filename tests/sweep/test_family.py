"""What a process and those it started have in memory."""

import subprocess
import sys
import time

import psutil
import pytest

from pqkv.sweep.family import Family

CHILD = "import time; held = b'x' * 60_000_000; print('held', flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


@pytest.fixture
def parent():
    started = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert started.stdout.readline() == "held\n"
    family = Family(started.pid)
    yield started
    family.kill()
    started.wait()


def test_a_child_is_counted_and_killed_with_its_parent(parent):
    family = Family(parent.pid)
    (child,) = psutil.Process(parent.pid).children()
    assert family.resident() == pytest.approx(
        child.memory_info().rss + psutil.Process(parent.pid).memory_info().rss, rel=0.02
    )
    assert family.resident() > 60_000_000
    family.kill()
    assert parent.wait(10) < 0
    assert psutil.wait_procs([child], 10)[1] == []
    assert family.resident() == 0


def test_a_child_that_comes_later_is_counted_within_a_second_or_so():
    started = subprocess.Popen([sys.executable, "-c", f"input(); {PARENT}"], stdin=subprocess.PIPE, text=True)
    family = Family(started.pid)
    assert 0 < family.resident() < 60_000_000
    started.stdin.write("\n")
    started.stdin.flush()
    end = time.monotonic() + 30
    while family.resident() < 60_000_000 and time.monotonic() < end:
        time.sleep(0.1)
    assert family.resident() > 60_000_000
    family.kill()
    started.wait()


def test_looking_at_memory_does_not_go_through_all_processes_each_time(monkeypatch):
    looks, family = [], Family(psutil.Process().pid)
    children = psutil.Process.children
    monkeypatch.setattr(psutil.Process, "children", lambda *given, **more: looks.append(1) or children(*given, **more))
    for _ in range(20):
        assert family.resident() > 1_000_000
    assert len(looks) == 1
