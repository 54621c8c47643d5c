"""A prompt from where it was given: a flag, a file, standard input."""

from __future__ import annotations

import sys
from pathlib import Path


def read_prompt(text: str | None, file: Path | None) -> str:
    """The prompt from where it was given, without the line end that files and pipes close with."""
    from pqkv.errors import ConfigError

    if text is not None and file is not None:
        raise ConfigError("--prompt and --prompt-file are two prompts; give one of them")
    if text is not None:
        return text
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ConfigError(f"cannot read the prompt {file}: {cause}; name a file of text") from error
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("no prompt; give a text with --prompt, a file with --prompt-file, or pipe one in")
    try:
        return sys.stdin.read().rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigError("the prompt on standard input is not text in this locale's encoding; give UTF-8") from error
