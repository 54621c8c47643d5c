"""One lock a record: who measures it, and whether that process still lives.

The lock is the kernel's (`flock`): it goes with the last process that holds it, however that one ends, so a lock never
outlives its holder and no clock decides. What the file says is for people: host, process, when the process began, and
as the file's own time the last heartbeat. A file that nobody has locked was left by a process that was killed; whoever
comes next takes it over and says so. Filesystems over a network may give one lock twice: they are refused.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType

from pqkv.errors import ConfigError, RecordError

NETWORKED = frozenset(
    (
        "nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "ceph", "fuse.ceph", "fuse.sshfs", "fuse.glusterfs",
        "glusterfs", "beegfs", "afs", "9p", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "pvfs2", "ocfs2", "gfs2",
        "wekafs",
    )
)  # fmt: skip
_POLL = 0.2  # seconds between two looks at a lock that somebody holds


@dataclass(frozen=True, slots=True)
class Holder:
    """Who a lock file names: host, process, when that process began; `heard` is its last heartbeat. Times are seconds
    since the epoch; `host` is empty where a process was killed before it had written its name.
    """

    host: str
    process: int
    started: float
    heard: float

    def __str__(self) -> str:
        if not self.host:
            return f"a process that had not given its name, last heard of at {_clock(self.heard)}"
        began, heard = _clock(self.started), _clock(self.heard)
        return f"process {self.process} on {self.host}, begun {began}, last heard of at {heard}"


class Lock:
    """A lock that is held. `left_by` is who was killed while holding it, None where it was free."""

    def __init__(self, path: Path, descriptor: int, left_by: Holder | None) -> None:
        self.path, self.left_by = path, left_by
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor: a process that is given it holds the lock as well, until both have closed it."""
        return self._descriptor

    def beat(self) -> None:
        """Say that the holder is still there."""
        os.utime(self._descriptor)

    def release(self) -> None:
        """Remove the file and give the lock back."""
        with suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self._descriptor)


def take(path: Path) -> Lock | Holder:
    """The lock at `path`, or who holds it. Raises `RecordError` where the folder takes no file, `ConfigError` where the
    platform has no locks for files.
    """
    try:
        return _take(path)
    except OSError as error:
        raise RecordError(f"cannot lock {path}: {error.strerror or error}") from error


def _take(path: Path) -> Lock | Holder:
    fcntl = _fcntl()
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _named(descriptor)
            os.close(descriptor)
            return holder
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # it was released and removed between the two calls
    left_by = _named(descriptor) if os.fstat(descriptor).st_size else None
    mine = {"host": socket.gethostname(), "process": os.getpid(), "started": process_start(os.getpid())}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(mine).encode(), 0)
    os.fsync(descriptor)
    return Lock(path, descriptor, left_by)


@contextmanager
def alone(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock at `path`, after waiting for whoever has it; what is waited for or taken over is said. Without
    effect where locks cannot be trusted: there nothing but the name of a record keeps two processes apart.
    """
    if refusal(path.parent) is not None:
        yield
        return
    found, told = take(path), False
    while isinstance(found, Holder):
        if not told:
            say(f"waiting for {found}, which measures the same record")
            told = True
        time.sleep(_POLL)
        found = take(path)
    if found.left_by is not None:
        say(f"took over the lock of {found.left_by}, which is gone")
    try:
        yield
    finally:
        found.release()


def refusal(folder: Path, filesystem: Callable[[Path], str] | None = None) -> str | None:
    """Why locks in `folder` cannot be trusted, or None. `filesystem` says what kind a folder's is."""
    kind = (filesystem or filesystem_of)(folder)
    if kind in NETWORKED:
        return f"{folder} lies on {kind}, where two machines may be given one lock"
    try:
        _fcntl()
    except ConfigError as error:
        return str(error)
    return None


def filesystem_of(folder: Path) -> str:
    """The kind of filesystem that `folder` lies on, as /proc/self/mountinfo names it; empty where nothing says."""
    where = folder.absolute()
    while not where.exists():
        where = where.parent
    where = where.resolve()
    best, kind = -1, ""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        mount, _, kinds = line.partition(" - ")
        point = mount.split()[4].replace("\\040", " ")
        if where.is_relative_to(point) and len(point) >= best:  # of two at one place the later hides the other
            best, kind = len(point), kinds.split()[0]
    return kind


def process_start(process: int) -> float:
    """When a process began, in seconds since the epoch; 0 where there is none."""
    import psutil

    try:
        return float(psutil.Process(process).create_time())
    except psutil.Error:
        return 0.0


def _named(descriptor: int) -> Holder:
    heard = os.fstat(descriptor).st_mtime
    try:
        held = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(str(held["host"]), int(held["process"]), float(held["started"]), heard)
    except (ValueError, KeyError, TypeError):  # killed, or seen, while it was writing
        return Holder("", 0, 0.0, heard)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _fcntl() -> ModuleType:
    try:
        import fcntl
    except ImportError as error:
        raise ConfigError("this platform has no locks that end with their process") from error
    return fcntl


def _clock(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S")
