"""What `pqkv generate` prints: texts as they are written, and then caches side by side."""

from __future__ import annotations

import re
import textwrap
from itertools import zip_longest

from pqkv.generation import Session
from pqkv.generation.session import EXACT, parting
from pqkv.record import Record
from pqkv_cli.output import console, echo, encodable
from pqkv_cli.table import print_lines, print_table

# what a model writes is text, whatever a terminal would make of it
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_BESIDE = 320  # characters of each text, from where they part
_SIZES = 6  # rows of the table of sizes


class Teller:
    """Prints each text under its cache's name, as it comes or from its record, and a line of figures below."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._exact: Record | None = None
        self._open: str | None = None

    def hear(self, name: str, piece: str) -> None:
        """The next piece of what is written on the cache `name`."""
        if self._open != name:
            self._head(name)
        echo(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", piece), end="")

    def finish(self, record: Record) -> None:
        """The record of the cache that was just heard, or of one that need not write again."""
        name = str(record.config["cache"])
        if record.status == "failed":
            echo("" if self._open != name else "\n", end="")
            print_lines(console(stderr=True), f"failed: {name}: {record.error}")
            return
        if self._open != name:
            self.hear(name, record.tables["generated"][0]["text"])
        echo("")
        echo(figures(record, self._exact))
        echo("")
        if name == EXACT:
            self._exact = record
        self._open = None

    def _head(self, name: str) -> None:
        self._open = name
        echo(f"== {name}")


def figures(record: Record, exact: Record | None) -> str:
    """Tokens a second, bytes and where it parts from the exact text, on one line."""
    used = record.metrics["cache_bytes"].value or 0.0
    line = f"-- {_rate(record)} tokens/s, cache {used / 1e6:.2f} MB"
    if exact is None:
        return line
    at = parting(record.samples["token_ids"], exact.samples["token_ids"])
    whole = exact.metrics["cache_bytes"].value or 1.0
    return f"{line} ({used / whole:.0%}), " + ("same text" if at is None else f"parts at token {at}")


def print_summary(session: Session, records: list[Record]) -> None:
    """The caches in one table, their bytes as they grew, and texts side by side from where they part."""
    exact = next((record for record in records if record.config["cache"] == EXACT), None)
    if not records:
        return
    out = console()
    print_table(
        out,
        ("cache", "tokens", "tokens/s", "first ms", "MB", "of exact", "coded", "parts at"),
        [_row(record, exact) for record in records],
        words=("cache",),
        title=f"{session.lm.name}, {session.ids.shape[1]} tokens of prompt",
        caption="tokens/s: median step; first ms: the prompt's step; MB: the cache with its last token, codebooks and "
        "table included; coded: share of the columns that steps saw; parts at: first token that is not the exact one's",
    )
    _print_growth(records)
    if exact is None:
        return
    for record in records:
        if record is not exact and (at := parting(record.samples["token_ids"], exact.samples["token_ids"])):
            _print_beside(session, exact, record, at)


def _row(record: Record, exact: Record | None) -> list[str]:
    m, used = record.metrics, record.metrics["cache_bytes"].value or 0.0
    share, first = m.get("coded_share"), m.get("ttft_ms")
    ids = record.samples["token_ids"]
    row = [
        str(record.config["cache"]),
        str(len(ids)),
        _rate(record),
        "" if first is None else f"{first.value:.0f}",
        f"{used / 1e6:.2f}",
    ]
    if exact is None or record is exact:
        return [*row, "", "", ""]
    at = parting(ids, exact.samples["token_ids"])
    whole = exact.metrics["cache_bytes"].value or 1.0
    return [*row, f"{used / whole:.0%}", "" if share is None else f"{share.value:.0%}", str(at or "never")]


def _rate(record: Record) -> str:
    return f"{1e3 / (record.metrics['tpot_ms'].value or 1.0):.1f}"


def _print_growth(records: list[Record]) -> None:
    """MB of every cache at the same tokens, where their records say so."""
    grown = {
        str(record.config["cache"]): {row["tokens"]: row["cache_bytes"] for row in record.tables["growth"]}
        for record in records
        if "growth" in record.tables
    }
    shared = sorted(set.intersection(*map(set, grown.values()))) if grown else []
    if len(grown) < 2 or len(shared) < 2:
        return
    step = max(1, -(-(len(shared) - 1) // (_SIZES - 1)))
    at = [tokens for i, tokens in enumerate(reversed(shared)) if i % step == 0][::-1]
    print_table(
        console(),
        ("cached tokens", *grown),
        [[str(tokens), *(f"{sizes[tokens] / 1e6:.2f}" for sizes in grown.values())] for tokens in at],
        title="MB of each cache as it grows",
    )


def _print_beside(session: Session, exact: Record, record: Record, at: int) -> None:
    """Both texts from token `at` on, in two columns."""
    out = console()
    width = min(max(20, (out.width - 3) // 2), 60)

    def column(one: Record) -> list[str]:
        text = encodable(session.text(one.samples["token_ids"][at - 1 :]), out.encoding)
        shown = " ".join(_CONTROL.sub(" ", text)[:_BESIDE].split())
        return textwrap.wrap(shown, width) or ["(ends)"]

    name = str(record.config["cache"])
    echo(f"{f'{EXACT} from token {at}'[:width]:{width}} | {name[:width]}")
    for left, right in zip_longest(column(exact), column(record), fillvalue=""):
        echo(f"{left:{width}} | {right}".rstrip())
    echo("")
