"""The tables of experiments/gpu/README.md: python experiments/gpu/tables.py recipe|bounds|speed|parts|kernels|tokens

recipe: a decoding step on product codes and on recipe pqkv beside the fastest exact attention, on an H100 and an H200;
bounds: kernels that are asked for more blocks, on both; speed: cells of an H100 that were timed with eleven launches a
step and not since; parts: what such a step consisted of; kernels: what a profiler says of each launch; tokens: time per
token of a whole model. All from results/gpu.
"""

import csv
import sys
from pathlib import Path
from typing import Any

from pqkv.record import Record, load_records

FOLDER = Path(__file__).parents[2] / "results/gpu"
CARDS = {"H100": "bench-h100", "H200": "bench-h200"}  # today's kernels: the folder of each card
BITS = (0, 4, 3, 2)
Cell = tuple[int, int, int, int]  # query heads, KV heads, batch, tokens
KERNEL = "kernel", "codes", "recipe", "dtype", "heads"  # what tells the rows of `launch_bounds` apart
SPEED_HEAD = """\
| query heads on KV heads | batch | tokens | fastest exact, ms | exact pages | 4 bits | 3 bits | 2 bits |
|---|---|---|---|---|---|---|---|"""


def by_cell(records: list[Record]) -> dict[Cell, dict[float, Record]]:
    """Records of a cell by their bits."""
    found: dict[Cell, dict[float, Record]] = {}
    for record in records:
        c = record.config
        cell = c["heads"], c["kv_heads"], c["batch"], c["context"]
        found.setdefault(cell, {})[c["bits"]] = record
    return dict(sorted(found.items()))


def by_recipe(folder: Path) -> tuple[dict[Cell, dict[float, Record]], ...]:
    """`by_cell` of product codes alone, and of all that recipe pqkv adds to them."""
    found = load_records(folder)
    return tuple(by_cell([r for r in found if ("served" in r.config) == served]) for served in (False, True))


def speed(folder: Path = FOLDER) -> str:
    """Speed-ups in cells that were not timed again."""
    lines = [SPEED_HEAD]
    again, _ = by_recipe(folder / CARDS["H100"])
    for cell, of in by_recipe(folder / "bench")[0].items():
        if cell in again:
            continue
        heads, kv_heads, batch, context = cell
        exact = of[4].metrics["exact_latency_ms"].value
        ratios = " | ".join(f"{of[bits].metrics['speedup'].value:.2f}" for bits in BITS)
        lines.append(f"| {heads} on {kv_heads} | {batch} | {context:,} | {exact:.3f} | {ratios} |")
    return "\n".join(lines)


def recipe(folder: Path = FOLDER) -> str:
    """Speed-ups of product codes alone and of all that recipe pqkv adds to them, a row a card."""
    cards = {name: by_recipe(folder / where) for name, where in CARDS.items()}
    lines = [
        "| query heads on KV heads | batch | tokens | card | fastest exact, ms | product codes, 4 bits | 2 bits | "
        "recipe pqkv, 4 bits | 2 bits |",
        "|---" * 9 + "|",
    ]
    for cell in cards["H100"][0]:
        heads, kv_heads, batch, context = cell
        for name, both in cards.items():
            exact = both[0][cell][4].metrics["exact_latency_ms"].value
            ratios = " | ".join(f"{of[cell][bits].metrics['speedup'].value:.2f}" for of in both for bits in (4, 2))
            lines.append(f"| {heads} on {kv_heads} | {batch} | {context:,} | {name} | {exact:.3f} | {ratios} |")
    return "\n".join(lines)


def of_kernels(folder: Path, card: str) -> dict[tuple[Any, ...], tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Rows of the check `launch_bounds` on a card by kernel: the one of which nothing is asked, and those that ask."""
    (record,) = (
        r for r in load_records(folder / "checks")
        if r.config["check"] == "launch_bounds" and card in r.config["machine"]
    )  # fmt: skip
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in record.tables["launch_bounds"]:
        found.setdefault(tuple(row.get(name) or "" for name in KERNEL), []).append(row)
    return {kernel: (alone, asking) for kernel, (alone, *asking) in found.items()}


def bounds(folder: Path = FOLDER) -> str:
    """Steps whose kernel is asked for more blocks, as times of the step whose kernel is not, on each card."""
    cards = [of_kernels(folder, card) for card in CARDS]
    lines = [
        "| kernel | codes | type | query heads on KV heads | blocks | asked for | "
        + " | ".join(f"{card}: step, us | times | interval" for card in CARDS) + " |",
        "|---" * (6 + 3 * len(CARDS)) + "|",
    ]  # fmt: skip
    for kernel, (alone, asking) in cards[0].items():
        codes = alone["codes"] + (", recipe pqkv" if alone.get("recipe") else "")
        first = f"{alone['kernel']} | {codes} | {alone['dtype']} | {alone['heads']} on 8 | {alone['blocks']}"
        for i, row in enumerate(asking):
            told = " | ".join(_asked(of[kernel], i) if kernel in of else " |  | " for of in cards)
            lines.append(f"| {first} | {row['blocks']} | {told} |")
    return "\n".join(lines)


def _asked(found: tuple[dict[str, Any], list[dict[str, Any]]], i: int) -> str:
    """Cells of a card: the step of which nothing is asked, and the times of the `i`-th that asks."""
    alone, row = found[0], found[1][i]
    return f"{alone['step_us']:.1f} | {row['times']:.3f} | [{row['low']:.3f}, {row['high']:.3f}]"


def parts(folder: Path = FOLDER) -> str:
    """Microseconds of the parts of a step."""
    records = sorted(
        load_records(folder / "breakdown"), key=lambda r: (r.config["batch"], r.config["context"], -r.config["bits"])
    )
    names = [row["part"] for row in records[0].tables["breakdown"]]
    titles = [f"{r.config['bits']:g} bits, {r.config['context']:,}, batch {r.config['batch']}" for r in records]
    lines = [f"| part, microseconds | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name in names:
        cells = [next(row["median_ms"] for row in r.tables["breakdown"] if row["part"] == name) for r in records]
        lines.append(f"| {name} | {' | '.join(f'{1e3 * cell:.1f}' for cell in cells)} |")
    return "\n".join(lines)


def kernels(folder: Path = FOLDER) -> str:
    """What `ncu` counted in each launch of pqkv's kernels."""
    with (folder / "kernels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kernel"] in ("coded", "exact", "merge")]
    lines = [
        "| bits | kernel | blocks | microseconds | MB read from memory | of its bandwidth | shared-memory unit busy | "
        "of its work, conflicts | issue slots used | warps resident |",
        "|---" * 10 + "|",
    ]
    for row in rows:
        work = float(row["shared_wavefronts"])
        lost = float(row["shared_conflicts"]) / work if work else 0
        lines.append(
            f"| {row['bits']} | {row['kernel']} | {row['blocks']} | {float(row['us']):.1f} | "
            f"{float(row['dram_mb']):.1f} | {float(row['dram_percent']):.0f}% | {float(row['lsu_percent']):.0f}% | "
            f"{lost:.0%} | {float(row['issue_percent']):.0f}% | {float(row['warps_percent']):.0f}% |"
        )
    return "\n".join(lines)


def tokens(folder: Path = FOLDER) -> str:
    """Milliseconds a token, whole model."""
    lines = ["| model | prompt | cache | pqkv, ms a token | DynamicCache | StaticCache |", "|---|---|---|---|---|---|"]
    for record in sorted(load_records(folder / "end-to-end"), key=lambda r: -r.config["bits"]):
        c = record.config
        each = {row["name"]: row["tpot_ms"] for row in record.tables["caches"]}
        name = f"{c['bits']:g} bits" if c["bits"] else "exact pages"
        lines.append(
            f"| {c['model']} | {c['context']:,} | {name} | {each['pqkv']:.1f} | {each['DynamicCache']:.1f} | "
            f"{each['StaticCache']:.1f} |"
        )
    return "\n".join(lines)


TABLES = {"recipe": recipe, "bounds": bounds, "speed": speed, "parts": parts, "kernels": kernels, "tokens": tokens}


def printed(words: list[str]) -> str:
    """The table named on the command line."""
    return TABLES[words[0]]()


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in TABLES:
        sys.exit(__doc__)
    print(printed(sys.argv[1:]))
