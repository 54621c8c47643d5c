"""The form of a text that says which text it is: what editors, checkouts and file systems change does not count."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator

BYTE_ORDER_MARK = "\ufeff"
# What str.strip() takes for white space, and the byte order mark, which it does not.
_OUTER = (
    "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000" + BYTE_ORDER_MARK
)
# Text written twice through a layer that turns \n into \r\n has \r\r\n for one end of a line.
_LINE_END = re.compile(r"\r+\n|\r")
_WRITTEN_ENDS = ("\n", "\r\n", "\r")


def normal_form(text: str) -> str:
    r"""Return `text` in Unicode form NFC, every line ended by \n, nothing but that around it: no mark, no white space.

    It ends as a text file does, so that it is the very text of most files; what is tokenized is never this form.
    """
    return unicodedata.normalize("NFC", _LINE_END.sub("\n", text)).strip(_OUTER) + "\n"


def digest_of(text: str) -> str:
    """Return the first 16 hexadecimal digits of SHA-256 over `text` as it stands, in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def raw_forms(text: str) -> Iterator[str]:
    """Yield forms in which `text` may have been hashed before digests were of the normal form, in a fixed order.

    Each Unicode form, each end of a line, what stands around it kept or not. A text that mixed these in itself, or
    stood among other white space than this one, cannot be told by its digest.
    """
    lines = _LINE_END.sub("\n", text.lstrip(BYTE_ORDER_MARK))
    body = lines.strip(_OUTER)
    for kept in (lines, body, f"{body}\n"):
        for end in _WRITTEN_ENDS:
            written = kept.replace("\n", end)
            yield written
            yield unicodedata.normalize("NFC", written)
            yield unicodedata.normalize("NFD", written)


def raw_digests(text: str) -> set[str]:
    """Return the digests of `text` as it stands and in all its `raw_forms`, with a byte order mark and without."""
    forms = {text, *raw_forms(text)}
    return {digest_of(mark + form) for form in forms for mark in ("", BYTE_ORDER_MARK)}
