"""Part d of `million`, by the report's own listings: how its split kernel copies rows of codes into shared memory
(`block_copy`), and how its paged one gathers them from transposed pages, byte by byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pqkv.record import Record
from pqkv.reproduce.million.lab import Lab
from pqkv.reproduce.million.reported import HEAD_DIM, PAGE_SIZE, SUBSPACES
from pqkv.reproduce.tables import Row, claim, of_kind
from pqkv.speed.accesses import LANES, WORD, Accesses, bank_passes, block_copy, byte_gather

COPIES = "million-copies"
FEWER = 0.75  # of the transactions, as claimed
_VECTOR = 16  # bytes of a lane's load in `block_copy`: "float4 and other vector types"
BY_VECTOR, BY_BYTE, GATHER = "rows, block_copy by 16 bytes", "rows, block_copy by bytes", "transposed, gather by bytes"


def copies_part(lab: Lab) -> Iterator[Record]:
    """A tile of L_t = d tokens of each."""
    config = {
        "part": "d", "data": "none: addresses counted", "tokens": HEAD_DIM, "num_subspaces": SUBSPACES,
        "page_size": PAGE_SIZE, "seed": lab.settings.seed,
    }  # fmt: skip
    yield lab.cell(COPIES, config, lambda: {"tables": {"copies": copy_rows(HEAD_DIM, SUBSPACES, PAGE_SIZE)}})


def copy_rows(tokens: int, num_subspaces: int, page_size: int) -> list[Row]:
    """Loads and sectors that bring the value codes of a tile, and passes through shared memory that store them."""
    ways: dict[str, tuple[Accesses, range]] = {  # and where in shared memory a warp stores what one load brought
        BY_VECTOR: (block_copy(tokens, num_subspaces, _VECTOR), range(0, LANES * _VECTOR, WORD)),
        BY_BYTE: (block_copy(tokens, num_subspaces, 1), range(LANES)),
        # local_value_codes[tid * M + m]
        GATHER: (byte_gather(tokens, num_subspaces, page_size), range(0, LANES * num_subspaces, num_subspaces)),
    }
    return [
        {"way": way, "tokens": tokens, "loads": found.loads, "sectors": found.units, "distinct": found.distinct,
         "store_passes": found.loads * bank_passes(stored)}
        for way, (found, stored) in ways.items()
    ]  # fmt: skip


def copies_finding(records: Sequence[Record]) -> list[Row]:
    """Sectors of a tile, rows against transposed pages, and what storing the tile takes of shared memory."""
    found = of_kind(records, COPIES)
    if not found:
        return []
    rows = {row["way"]: row for row in found[-1].tables["copies"]}
    rowwise, gather = rows[BY_VECTOR], rows[GATHER]
    fewer = 1 - gather["sectors"] / rowwise["sectors"]
    said = ", ".join(f"{way} {row['sectors']} sectors in {row['loads']} loads" for way, row in rows.items())
    passes = ", ".join(f"{way} {row['store_passes']:,}" for way, row in rows.items())
    return [
        claim(
            "memory transactions of value codes, by the report's own listings", "75% fewer transposed",
            f"{said}: {fewer:.0%} fewer; counted, a tile of {rowwise['tokens']} tokens, each GPU sector of 32 bytes",
            fewer >= FEWER,
        ),
        claim(
            "bank conflicts of value codes, by the report's own listings", "fewer transposed",
            f"passes to store a tile: {passes}; counted", gather["store_passes"] < rowwise["store_passes"],
        ),
    ]  # fmt: skip
