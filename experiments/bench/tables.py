"""The tables of experiments/bench/README.md, made of records: python experiments/bench/tables.py WHAT

WHAT is `codes` (product codes of 8 bits), `bytes` (codes looked up in byte tables beside the same by floats), `exact`
(pages of exact vectors) or `instructions` (of look-ups in byte tables, counted on several processors).
"""

import sys
from pathlib import Path

import pandas as pd

from pqkv.record import Record, load_records

ROOT = Path(__file__).parents[2]
BYTES_HEAD = """\
| bits | codes | tokens | ms | by floats, ms | of SDPA's speed, bytes | floats | largest error |
|---|---|---|---|---|---|---|---|"""
CODES_HEAD = """\
| tokens | 4 bits, ms | SDPA float32 over it | SDPA bfloat16 | 2 bits, ms | SDPA float32 over it | SDPA bfloat16 |
|---|---|---|---|---|---|---|"""
EXACT_HEAD = """\
| tokens | float32, ms | speed-up | bfloat16, ms | speed-up |
|---|---|---|---|---|"""
COUNT_HEAD = """\
| instructions for | codes | d_sub | keys | values |
|---|---|---|---|---|"""


def codes() -> str:
    """A row a length from 1,024 tokens on and one a ragged batch."""
    cells: dict[tuple[int, int], dict[float, Record]] = {}
    for record in load_records(ROOT / "results/bench"):
        c = record.config
        if c["bits"] in (4, 2) and c["dtype"] == "float32" and c["context"] >= 1024:
            cells.setdefault((c["batch"], c["context"]), {})[c["bits"]] = record
    lines = [CODES_HEAD]
    for (batch, context), pair in sorted(cells.items()):
        words = [f"{context:,}" if batch == 1 else f"{batch} sequences, {context // batch:,} to {context:,}"]
        words += [word for bits in (4, 2) for word in against_sdpa(pair[bits])]
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def against_sdpa(record: Record) -> list[str]:
    """Milliseconds, and how many times as long SDPA takes in float32 and in bfloat16."""
    times = {row["name"]: row["speedup"] for row in record.tables["contestants"]}
    return [ms(record), *(f"{times[f'sdpa {dtype}']:.2f}x" for dtype in ("float32", "bfloat16"))]


def bytes_() -> str:
    """A row a shape and length: by bytes, by floats where that was measured."""
    cells = {}
    for record in load_records(ROOT / "results/bench-bytes"):
        c = record.config
        cells[-c["bits"], c["num_subspaces"], c["nbits"], c["context"], "cpu_path" in c] = record
    lines = [BYTES_HEAD]
    for key, record in sorted(cells.items()):
        *shape, by_bytes = key
        if not by_bytes:
            continue
        floats = cells.get((*shape, False))
        bits, M, nbits, context = shape
        lines.append(
            f"| {-bits:g} | {M} of {nbits} bits | {context:,} | {ms(record)} | {ms(floats)} | {ratio(record)} | "
            f"{ratio(floats)} | {record.tables['check'][0]['relative_error']:.1e} |"
        )
    return "\n".join(lines)


def exact() -> str:
    """A row a length."""
    cells = {
        (r.config["context"], r.config["dtype"]): r
        for r in load_records(ROOT / "results/bench")
        if r.config["bits"] == 0 and r.config["batch"] == 1
    }
    lines = [EXACT_HEAD]
    for context in sorted({context for context, _ in cells}):
        pair = [cells.get((context, dtype)) for dtype in ("float32", "bfloat16")]
        lines.append(f"| {context:,} | " + " | ".join(f"{ms(r)} | {ratio(r)}" for r in pair) + " |")
    return "\n".join(lines)


def instructions() -> str:
    """A row a form, processor and geometry."""
    table = pd.read_csv(ROOT / "results/checks/byte_instructions.csv")
    form = {1: ", one byte", 2: ""}
    rows = [
        f"| {r.path}, {r.processor}{form[r.planes]} | {r.nbits} bits | {r.d_sub} | {r.keys:.1f} | {r.values:.1f} |"
        for r in table.itertuples()
    ]
    return "\n".join([COUNT_HEAD, *rows])


def ms(record: Record | None) -> str:
    return "" if record is None else f"{record.metrics['latency_ms'].value:.2f}"


def ratio(record: Record | None) -> str:
    if record is None:
        return ""
    m = record.metrics["speedup"]
    return f"{m.value:.2f} [{m.low:.2f}, {m.high:.2f}]"


TABLES = {"codes": codes, "bytes": bytes_, "exact": exact, "instructions": instructions}


def printed(words: list[str]) -> str:
    """The table named on the command line."""
    return TABLES[words[0]]()


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in TABLES:
        sys.exit(__doc__)
    print(printed(sys.argv[1:]))
