"""What another library's error says, on one line that ends where a sentence does."""

from __future__ import annotations

import re

_LONGEST = 400
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(`'\"])")


def reason(error: BaseException) -> str:
    """The message of `error` on one line: its first sentences, as many as 400 characters hold and at least one; a
    first sentence that is longer is cut between words, and says so. An error without a message gives its type's name.
    """
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    kept = ""
    for sentence in _SENTENCE_END.split(text):
        longer = f"{kept} {sentence}".lstrip()
        if len(longer) > _LONGEST:
            break
        kept = longer
    return kept or f"{text[:_LONGEST].rsplit(' ', 1)[0]} ..."
