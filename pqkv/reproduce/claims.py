"""Claims of a report beside what was measured: one row each, the same columns in every experiment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from pqkv.record import atomic_write

CLAIMS_FILE = "claims.csv"


@dataclass(frozen=True, slots=True)
class Claim:
    """`holds` is None where this machine cannot tell."""

    part: str
    claim: str
    theirs: str
    ours: str
    holds: bool | None


def write_claims(claims: Iterable[Claim], folder: Path) -> Path:
    """Write them to `claims.csv`; what holds is yes, no or not measured."""
    words = {True: "yes", False: "no", None: "not measured"}
    rows = [asdict(claim) | {"holds": words[claim.holds]} for claim in claims]
    return write_table(rows, ["part", "claim", "theirs", "ours", "holds"], folder / CLAIMS_FILE)


def write_table(rows: list[dict[str, object]], columns: list[str], path: Path) -> Path:
    """Write rows as CSV with these columns; None is an empty field."""
    atomic_write(path, pd.DataFrame(rows, columns=columns).to_csv(index=False, lineterminator="\n").encode())
    return path
