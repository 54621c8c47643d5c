"""Kills the process it is imported into, once, at one step of writing a file: on PYTHONPATH, with KILL_AT set.

KILL_AT is `STEP PATTERN MARK`: the process ends by SIGKILL at the first such step on a path that the pattern is found
in, and leaves the file MARK, after which nothing is killed any more. Steps: `opened` (made, nothing written),
`written` (before fsync), `synced` (before rename), `renamed`, `locked` (nothing written), `unlinking`.
"""

import fcntl
import io
import os
import re
import signal
from pathlib import Path

STEP, PATTERN, MARK = os.environ.get("KILL_AT", "none - -").split(" ")


def at(step, path):
    if step == STEP and re.search(PATTERN, str(path)):
        try:
            os.close(os.open(MARK, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)


def path_of(descriptor):
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def watched(module, name, before=None, after=None):
    real = getattr(module, name)

    def call(*given, **more):
        if before:
            before(*given)
        found = real(*given, **more)
        if after:
            after(*given)
        return found

    setattr(module, name, call)


if STEP != "none":
    watched(os, "fsync", lambda fd: at("written", path_of(fd)), lambda fd: at("synced", path_of(fd)))
    watched(os, "replace", None, lambda old, new: at("renamed", new))
    watched(fcntl, "flock", None, lambda fd, how: at("locked", path_of(fd)))
    watched(os, "unlink", lambda path, *more, **other: at("unlinking", path))
    watched(io, "open", None, lambda path, *more, **other: at("opened", path))
