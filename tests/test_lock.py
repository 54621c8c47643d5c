"""One lock a record: held by one process, ended with it, said when taken over, refused on a network."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from pqkv.errors import RecordError
from pqkv.lock import Holder, Lock, alone, filesystem_of, refusal, take

HOLD = """
import sys, time
from pathlib import Path
from pqkv.lock import take
lock = take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def held_elsewhere(tmp_path):
    """A lock that another process holds, and that process."""
    path = tmp_path / "record.lock"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"held\n"
    yield path, child
    child.kill()
    child.wait()


def test_a_lock_says_which_process_holds_it_and_since_when(held_elsewhere):
    path, child = held_elsewhere
    found = take(path)
    assert isinstance(found, Holder)
    assert (found.host, found.process) == (os.uname().nodename, child.pid)
    assert found.started == psutil.Process(child.pid).create_time()
    assert abs(found.heard - time.time()) < 30
    assert f"process {child.pid} on {found.host}" in str(found)


def test_a_killed_holders_lock_is_taken_over_and_it_says_whose_it_was(held_elsewhere):
    path, child = held_elsewhere
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert path.exists()  # a killed process removes nothing
    lock = take(path)
    assert isinstance(lock, Lock)
    assert lock.left_by.process == child.pid
    assert json.loads(path.read_text())["process"] == os.getpid()
    lock.release()
    assert not path.exists()


def test_a_stopped_process_keeps_its_lock_however_long_it_is_silent(held_elsewhere):
    path, child = held_elsewhere
    child.send_signal(signal.SIGSTOP)
    os.utime(path, (0, 0))
    found = take(path)
    assert isinstance(found, Holder)
    assert found.heard == 0
    child.send_signal(signal.SIGCONT)


def test_a_heartbeat_is_the_time_of_the_file(tmp_path):
    lock = take(tmp_path / "a.lock")
    os.utime(lock.path, (0, 0))
    lock.beat()
    assert abs(lock.path.stat().st_mtime - time.time()) < 30
    lock.release()


def test_a_process_that_was_given_the_descriptor_holds_the_lock_too(tmp_path):
    lock = take(tmp_path / "a.lock")
    child = subprocess.Popen(["sleep", "60"], pass_fds=[lock.fileno()])
    os.close(lock.fileno())  # as the kernel does when the process that took it is killed
    assert isinstance(take(lock.path), Holder)
    child.kill()
    child.wait()
    assert isinstance(take(lock.path), Lock)


@pytest.mark.parametrize("written", ["", '{"host": "a', "[]", '{"host": "a", "process": "x"}'])
def test_a_lock_whose_holder_was_killed_while_writing_its_name_is_taken(tmp_path, written):
    path = tmp_path / "a.lock"
    path.write_text(written)
    lock = take(path)
    assert isinstance(lock, Lock)
    assert (lock.left_by is None) == (written == "")
    assert "had not given its name" in str(lock.left_by) or lock.left_by is None


def _count(path, total, seen):
    for _ in range(40):
        with alone(path, lambda line: None):
            if seen.value:
                total.value = -1_000_000  # two at once
            seen.value = 1
            time.sleep(0.0005)
            seen.value = 0
            total.value += 1


def test_processes_that_contend_are_alone_one_after_another(tmp_path):
    context = multiprocessing.get_context("spawn")
    total, seen = context.Value("i", 0, lock=False), context.Value("i", 0, lock=False)
    several = [context.Process(target=_count, args=(tmp_path / "a.lock", total, seen)) for _ in range(3)]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert total.value == 120


def test_who_waits_and_who_takes_over_says_so(held_elsewhere):
    path, child = held_elsewhere
    said = []

    def say(line):
        said.append(line)
        child.kill()

    with alone(path, say):
        pass
    assert [line.split(" process")[0] for line in said] == ["waiting for", "took over the lock of"]


def test_network_filesystems_are_refused_by_name(tmp_path):
    for kind in ("nfs", "nfs4", "cifs", "lustre", "fuse.sshfs"):
        assert f"lies on {kind}" in refusal(tmp_path, lambda folder, kind=kind: kind)
    for kind in ("ext4", "xfs", "tmpfs", "overlay", ""):
        assert refusal(tmp_path, lambda folder, kind=kind: kind) is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc names filesystems")
def test_the_filesystem_of_a_folder_is_that_of_the_mount_it_lies_below(tmp_path):
    assert filesystem_of(tmp_path) == subprocess.run(
        ["findmnt", "-no", "FSTYPE", "-T", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout.strip()  # fmt: skip
    assert filesystem_of(tmp_path / "not" / "there") == filesystem_of(tmp_path)
    assert filesystem_of(__import__("pathlib").Path("/proc/self")) == "proc"


def test_a_folder_that_takes_no_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot lock"):
        take(tmp_path / "file" / "a.lock")
