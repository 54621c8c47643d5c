"""The tables of experiments/bench/README.md, made of records: python experiments/bench/tables.py WHAT

WHAT is `speedups` and `codes` (product codes, looked up as floats), `bytes` (codes looked up in byte tables beside the
same by floats), `shapes` (those of other heads and batches), `recipe` (all of recipe pqkv), `exact` (pages of exact
vectors), `zen4` (all that was timed on a processor with AVX-512), `xeon` (another one, its longest context), `turns`
and `one-call` (before and since a change, in turns), `instructions` (of look-ups in byte tables, counted on several
processors) or `cycles` (on the processor at hand).
"""

import sys
from pathlib import Path
from statistics import median

import pandas as pd

from pqkv.record import Record, load_records

ROOT = Path(__file__).parents[2]
ONE_CALL = "results/bench-zen4-one-call"
BYTES_HEAD = """\
| bits | codes | tokens | ms | by floats, ms | one byte, ms | of exact attention's | floats | one byte | largest error |
|---|---|---|---|---|---|---|---|---|---|"""
SHAPES_HEAD = """\
| query heads on KV heads of | sequences | bits | codes | tokens | ms | of exact attention's speed | largest error |
|---|---|---|---|---|---|---|---|"""
SPEEDUPS_HEAD = """\
| tokens | 4 bits, speed-up | 3 bits, speed-up | 2 bits, speed-up |
|---|---|---|---|"""
RECIPE_HEAD = """\
| bits | tokens | ms | of exact attention's speed | values rounded to bytes, ms | of exact attention's speed |
|---|---|---|---|---|---|"""
CODES_HEAD = """\
| tokens | 4 bits, ms | SDPA float32 over it | SDPA bfloat16 | 2 bits, ms | SDPA float32 over it | SDPA bfloat16 |
|---|---|---|---|---|---|---|"""
EXACT_HEAD = """\
| tokens | float32, ms | speed-up | bfloat16, ms | speed-up |
|---|---|---|---|---|"""
COUNT_HEAD = """\
| instructions for | codes | d_sub | keys | values |
|---|---|---|---|---|"""

CYCLES_HEAD = """\
| weights of | codes | d_sub | heads | keys before | keys | values before | values |
|---|---|---|---|---|---|---|---|"""

TURNS_HEAD = """\
| tokens | bits | before, ms | since, ms | since over before, turn by turn | speed-up before | since |
|---|---|---|---|---|---|---|"""


def speedups() -> str:
    """A row a length of one sequence."""
    cells: dict[int, dict[float, Record]] = {}
    for record in load_records(ROOT / "results/bench"):
        if record.config["batch"] == 1:
            cells.setdefault(record.config["context"], {})[record.config["bits"]] = record
    lines = [SPEEDUPS_HEAD]
    for context, of in sorted(cells.items()):
        lines.append(f"| {context:,} | " + " | ".join(ratio(of.get(bits)) for bits in (4, 3, 2)) + " |")
    return "\n".join(lines)


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


def bytes_(folder: str = "results/bench-bytes", fewest: int = 0) -> str:
    """A row a shape and length, of `fewest` tokens and more: by bytes, by floats and by bytes of one plane where that
    was measured.
    """
    cells: dict[tuple[float, int, int, int], dict[str, Record]] = {}
    for record in load_records(ROOT / folder):
        c = record.config
        if (form := form_of(record)) and usual(record) and c["context"] >= fewest:
            cells.setdefault((-c["bits"], c["num_subspaces"], c["nbits"], c["context"]), {})[form] = record
    lines = [BYTES_HEAD]
    for (bits, M, nbits, context), of in sorted(cells.items()):
        forms = [of.get(form) for form in FORMS]
        words = [f"{-bits:g}", f"{M} of {nbits} bits", f"{context:,}", *map(ms, forms), *map(ratio, forms)]
        lines.append(f"| {' | '.join(words)} | {error(of[FORMS[0]])} |")
    return "\n".join(lines)


def shapes(folder: str = "results/bench-bytes") -> str:
    """Look-ups in byte tables of other heads than 32 on 8 of 128, and of several sequences: a row a cell."""
    rows = []
    for record in load_records(ROOT / folder):
        c = record.config
        if form_of(record) == FORMS[0] and not usual(record):
            heads = f"{c['heads']} on {c['kv_heads']} of {c['head_dim']}"
            codes = f"{c['bits']:g} | {c['num_subspaces']} of {c['nbits']} bits"
            words = f"{heads} | {c['batch']} | {codes} | {c['context']:,}"
            order = c["batch"], c["head_dim"], c["heads"], -c["bits"], c["context"]
            rows.append((order, f"| {words} | {ms(record)} | {ratio(record)} | {error(record)} |"))
    return "\n".join([SHAPES_HEAD, *(line for _, line in sorted(rows))])


FORMS = "bytes", "floats", "one byte"


def form_of(record: Record) -> str | None:
    """How codes with centroids of bytes are looked up; None of other records. Another path than the processor's own is
    another form too; "vnni" counts as its own, as a record does not say whether it has VBMI.
    """
    c = record.config
    if not c["bits"] or c.get("served") != ["int8"]:
        return None
    if c["backend"] == "cpu-8bit":
        return FORMS[2]
    path = c.get("cpu_path")
    own = "avx512" if record.env["simd"].startswith("avx512") else record.env["simd"]
    return FORMS[1] if path is None else FORMS[0] if path in (own, "vnni") else path


def usual(record: Record) -> bool:
    """Whether it is of one sequence and of the heads that most cells have."""
    c = record.config
    return (c["heads"], c["kv_heads"], c["head_dim"], c["batch"]) == (32, 8, 128, 1)


def recipe(folder: str = "results/bench-recipe") -> str:
    """A row a width and length: with the codebook of values as it is, and rounded to bytes."""
    cells: dict[tuple[float, int], dict[str, Record]] = {}
    for record in load_records(ROOT / folder):
        c = record.config
        if not c["bits"] or c["served"] == ["int8"]:  # pages of vectors, and codes without the rest of the recipe
            continue
        cells.setdefault((-c["bits"], c["context"]), {})[c["backend"]] = record
    lines = [RECIPE_HEAD]
    for (bits, context), of in sorted(cells.items()):
        pair = of.get("cpu"), of.get("cpu-bytes")
        lines.append(f"| {-bits:g} | {context:,} | " + " | ".join(f"{ms(r)} | {ratio(r)}" for r in pair) + " |")
    return "\n".join(lines)


def zen4() -> str:
    """`bytes`, `shapes`, `recipe` and `exact` of a processor with AVX-512, one after another."""
    folder = "results/bench-zen4"
    return "\n\n".join((bytes_(folder), shapes(folder), recipe(folder), exact(folder)))


def xeon() -> str:
    """`bytes` of another one, at its longest context."""
    return bytes_("results/bench-avx512", 131_072)


def turns(folder: str = "results/bench-zen4-turns") -> str:
    """A row a cell: medians of three turns, and the three ratios of a code's own time."""
    found = turn_records(folder)
    lines = [TURNS_HEAD]
    for (context, bits), of in sorted(found.items()):
        own = {which: [r.metrics["latency_ms"].value for r in records] for which, records in of.items()}
        gain = {which: median(r.metrics["speedup"].value for r in records) for which, records in of.items()}
        ratios = ", ".join(f"{b / a:.2f}" for a, b in zip(own["before"], own["since"], strict=True))
        lines.append(
            f"| {context:,} | {-bits:g} | {median(own['before']):.2f} | {median(own['since']):.2f} | {ratios} | "
            f"{gain['before']:.2f} | {gain['since']:.2f} |"
        )
    return "\n".join(lines)


def turn_records(folder: str = "results/bench-zen4-turns") -> dict[tuple[int, float], dict[str, list[Record]]]:
    """Of each cell the records before and since, turn by turn."""
    found: dict[tuple[int, float], dict[str, list[Record]]] = {}
    for which in ("before", "since"):
        for turn in (1, 2, 3):
            for record in load_records(ROOT / folder / f"{which}-{turn}"):
                cell = found.setdefault((record.config["context"], -record.config["bits"]), {})
                cell.setdefault(which, []).append(record)
    return found


def exact(folder: str = "results/bench") -> str:
    """A row a length."""
    cells = {
        (r.config["context"], r.config["dtype"]): r
        for r in load_records(ROOT / folder)
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


def cycles() -> str:
    """A row a form and geometry: cycles before look-ups of AVX-512 were put in order, and since."""
    files = [pd.read_csv(ROOT / f"results/checks/byte_cycles{which}.csv") for which in ("_before", "")]
    shape = ["planes", "nbits", "d_sub", "heads"]
    form = {1: "one byte", 2: "two bytes"}
    rows = [
        f"| {form[r.planes]} | {r.nbits} bits | {r.d_sub} | {r.heads} | {r.keys_x:.1f} | {r.keys_y:.1f} | "
        f"{r.values_x:.1f} | {r.values_y:.1f} |"
        for r in files[0].merge(files[1], on=shape).itertuples()
    ]
    return "\n".join([CYCLES_HEAD, *rows])


def ms(record: Record | None) -> str:
    return "" if record is None else f"{record.metrics['latency_ms'].value:.2f}"


def ratio(record: Record | None) -> str:
    if record is None:
        return ""
    m = record.metrics["speedup"]
    return f"{m.value:.2f} [{m.low:.2f}, {m.high:.2f}]"


def error(record: Record) -> str:
    return f"{record.tables['check'][0]['relative_error']:.1e}"


TABLES = {
    "speedups": speedups, "codes": codes, "bytes": bytes_, "shapes": shapes, "recipe": recipe, "exact": exact,
    "zen4": zen4, "xeon": xeon, "turns": turns, "one-call": lambda: turns(ONE_CALL),
    "instructions": instructions, "cycles": cycles,
}  # fmt: skip


def printed(words: list[str]) -> str:
    """The table named on the command line."""
    return TABLES[words[0]]()


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in TABLES:
        sys.exit(__doc__)
    print(printed(sys.argv[1:]))
