"""Where results go: standard output and error that take every character, outlive their reader, and know their width.

A result is never lost to printing. What an encoding lacks is written with characters that it has, a closed pipe ends
the printing and not the run, and a full disk is one line.
"""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console

from pqkv.errors import PqkvError

_FILE_WIDTH, _TERMINAL_WIDTH = 130, 80  # where nothing says how wide it is
_PLAIN, _PLAIN_OR_BYTES = "pqkv-plain", "pqkv-plain-or-bytes"
_LOOK_ALIKES = {"…": "...", "—": "-", "─": "-", "━": "-", "│": "|", "█": "#", "•": "*"}


def make_encodable() -> None:
    """Let standard output and error write any text, in the encoding they have.

    A stream that Python opened to pass undecodable bytes of file names through, as in the C locale, still does.
    """
    codecs.register_error(_PLAIN, _plain)
    codecs.register_error(_PLAIN_OR_BYTES, _plain_or_bytes)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's or a test's may be no text file
            passes_bytes = stream.errors in ("surrogateescape", _PLAIN_OR_BYTES)
            stream.reconfigure(errors=_PLAIN_OR_BYTES if passes_bytes else _PLAIN)


def encodable(text: str, encoding: str) -> str:
    """`text` as `encoding` can show it: "…" as "...", what has no like as an escape ("\\xe9")."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return "".join(_like(character) if _lacks(encoding, character) else character for character in text)
    return text


def console(*, stderr: bool = False) -> Console:
    """Standard output or error for tables and lines, as wide as COLUMNS or the terminal says, wide in files and pipes.

    Text is printed as it stands: no markup, as a model or a folder may be called `[bold]`.
    """
    found = _SafeConsole(stderr=stderr)
    if stderr and found.is_interactive:
        return found  # follows a terminal whose size changes
    # rich takes pipes and dumb terminals to be 80 wide, the latter unless it is told both sizes
    return _SafeConsole(stderr=stderr, width=_width(found.file), height=24)


def echo(text: object, *, stderr: bool = False, end: str = "\n") -> None:
    """Write `text` as it stands, however long its lines are."""
    stream = sys.stderr if stderr else sys.stdout
    if stream is None:  # closed by whoever started us
        return
    with _delivering(stream, dispensable=stderr):
        stream.write(f"{text}{end}")
        stream.flush()


def discard(stream: IO[str] | None) -> None:
    """Send what is still to come nowhere, and what the stream holds back, which Python would try again at its exit."""
    if stream is None:
        return
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


class _SafeConsole(Console):
    def __init__(self, **settings: Any) -> None:  # noqa: ANN401 - rich's own
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def print(self, *objects: Any, **settings: Any) -> None:  # noqa: ANN401 - rich's own
        with _delivering(self.file, dispensable=self.stderr):
            super().print(*objects, **settings)

    def on_broken_pipe(self) -> None:
        discard(self.file)


@contextmanager
def _delivering(stream: IO[str], *, dispensable: bool) -> Iterator[None]:
    """What cannot be delivered ends no run if it is `dispensable`, as progress is, or if nobody reads any more."""
    try:
        yield
    except OSError as error:
        discard(stream)
        if not dispensable and not isinstance(error, BrokenPipeError):
            cause = error.strerror or error
            raise PqkvError(f"cannot write to standard output: {cause}; send it somewhere else") from error


def _width(stream: IO[str]) -> int:
    stated = os.environ.get("COLUMNS", "")
    if stated.isdecimal() and int(stated) > 0:
        return int(stated)
    if not stream.isatty():
        return _FILE_WIDTH
    try:
        return os.get_terminal_size(stream.fileno()).columns or _TERMINAL_WIDTH
    except (OSError, ValueError):
        return _TERMINAL_WIDTH


def _lacks(encoding: str, character: str) -> bool:
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return True
    return False


def _like(character: str) -> str:
    return _LOOK_ALIKES.get(character) or character.encode("ascii", "backslashreplace").decode()


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_like, error.object[error.start : error.end])), error.end


def _plain_or_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return _plain(error)
