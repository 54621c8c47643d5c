"""Where tables go."""

from __future__ import annotations

from rich.console import Console

_FILE_WIDTH = 130  # where no terminal says how wide it is


def console() -> Console:
    """Standard output; wide enough for a table in a file or a pipe."""
    found = Console()
    return found if found.is_terminal else Console(width=_FILE_WIDTH)
