"""The harness's file of answers (`--use_cache`), with a table for each model and coding.

Its keys are task and text alone: two codecs, or two modes, that share a file would be given each other's answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlitedict import SqliteDict


def own_table(answers: SqliteDict, identity: str) -> None:
    """Let `answers`, an open file, keep and find answers in the table of `identity` from now on."""
    answers.tablename = f"pqkv-{identity}"
    answers.conn.execute(f'CREATE TABLE IF NOT EXISTS "{answers.tablename}" (key TEXT PRIMARY KEY, value BLOB)')
    answers.conn.commit()
