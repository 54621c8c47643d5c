"""The tables of experiments/gpu/README.md: python experiments/gpu/tables.py speed|recipe|bounds|parts|kernels|tokens

speed: a decoding step beside the fastest exact attention, on an H100; recipe: the same of product codes and of recipe
pqkv, on an H200; bounds: kernels that are asked for more blocks; parts: what a step consists of; kernels: what a
profiler says of each launch; tokens: time per token of a whole model. All from results/gpu.
"""

import csv
import sys
from pathlib import Path
from typing import Any

from pqkv.record import Record, load_records

FOLDER = Path(__file__).parents[2] / "results/gpu"
BITS = (0, 4, 3, 2)
KERNEL = "kernel", "codes", "recipe", "dtype", "heads"  # what tells the rows of `launch_bounds` apart
SPEED_HEAD = """\
| query heads on KV heads | batch | tokens | fastest exact, ms | exact pages | 4 bits | 3 bits | 2 bits |
|---|---|---|---|---|---|---|---|"""


def by_cell(records: list[Record]) -> dict[tuple[int, int, int, int], dict[float, Record]]:
    """Records of a cell by their bits; cells are (query heads, KV heads, batch, tokens)."""
    found: dict[tuple[int, int, int, int], dict[float, Record]] = {}
    for record in records:
        c = record.config
        cell = c["heads"], c["kv_heads"], c["batch"], c["context"]
        found.setdefault(cell, {})[c["bits"]] = record
    return dict(sorted(found.items()))


def speed(folder: Path = FOLDER) -> str:
    """Speed-ups with the intervals of their medians."""
    lines = [SPEED_HEAD]
    for (heads, kv_heads, batch, context), of in by_cell(load_records(folder / "bench")).items():
        exact = of[4].metrics["exact_latency_ms"].value
        ratios = " | ".join(f"{of[bits].metrics['speedup'].value:.2f}" for bits in BITS)
        lines.append(f"| {heads} on {kv_heads} | {batch} | {context:,} | {exact:.3f} | {ratios} |")
    return "\n".join(lines)


def recipe(folder: Path = FOLDER) -> str:
    """Speed-ups of product codes alone and of all that recipe pqkv adds to them."""
    found = load_records(folder / "bench-h200")
    alone, whole = (by_cell([r for r in found if ("served" in r.config) == served]) for served in (False, True))
    lines = [
        "| query heads on KV heads | batch | tokens | fastest exact, ms | product codes, 4 bits | 2 bits | "
        "recipe pqkv, 4 bits | 2 bits |",
        "|---" * 8 + "|",
    ]
    for (heads, kv_heads, batch, context), of in alone.items():
        exact = of[4].metrics["exact_latency_ms"].value
        both = of, whole[heads, kv_heads, batch, context]
        ratios = " | ".join(f"{one[bits].metrics['speedup'].value:.2f}" for one in both for bits in (4, 2))
        lines.append(f"| {heads} on {kv_heads} | {batch} | {context:,} | {exact:.3f} | {ratios} |")
    return "\n".join(lines)


def of_kernels(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Rows of the check `launch_bounds` by kernel: the one of which nothing is asked, and those that ask."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in KERNEL), []).append(row)
    return [(alone, asking) for alone, *asking in found.values()]


def bounds(folder: Path = FOLDER) -> str:
    """Steps whose kernel is asked for more blocks, as times of the step whose kernel is not."""
    (record,) = (r for r in load_records(folder / "checks") if r.config["check"] == "launch_bounds")
    lines = [
        "| kernel | codes | type | query heads on KV heads | blocks | step, us | asked for | times | interval |",
        "|---" * 9 + "|",
    ]
    for alone, asking in of_kernels(record.tables["launch_bounds"]):
        codes = alone["codes"] + (", recipe pqkv" if alone.get("recipe") else "")
        first = f"{alone['kernel']} | {codes} | {alone['dtype']} | {alone['heads']} on 8 | {alone['blocks']}"
        lines += [
            f"| {first} | {alone['step_us']:.1f} | {row['blocks']} | {row['times']:.3f} | "
            f"[{row['low']:.3f}, {row['high']:.3f}] |"
            for row in asking
        ]
    return "\n".join(lines)


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


TABLES = {"speed": speed, "recipe": recipe, "bounds": bounds, "parts": parts, "kernels": kernels, "tokens": tokens}


def printed(words: list[str]) -> str:
    """The table named on the command line."""
    return TABLES[words[0]]()


if __name__ == "__main__":
    if sys.argv[1:2] == [] or sys.argv[1] not in TABLES:
        sys.exit(__doc__)
    print(printed(sys.argv[1:]))
