"""What ptxas gives every kernel, and instructions by its disassembly: registers, spills, shared memory; needs no GPU.

.venv/bin/python experiments/checks/kernel_resources.py [--kernels coded exact] [-o after.csv] [--against before.csv]

`code` counts all instructions of a kernel, `key_loop` and `value_loop` those of a look-up and query head; `blocks` run
on a multiprocessor at a time, as far as registers and shared memory go, and `asked` were asked of ptxas. With
`--against` it prints rows that differ from a table written before, the old number first.
"""

import argparse
import csv
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from pqkv.kernels.cuda import compile as compiling
from pqkv.kernels.cuda.bounds import launch_bounds
from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.kernels.cuda.encoding import EncodeVariant
from pqkv.kernels.cuda.exact import ExactVariant, fitting
from pqkv.kernels.cuda.merge import MergeVariant, merge_block
from pqkv.kernels.cuda.plain import PlainVariant
from pqkv.kernels.cuda.score_row import NaiveVariant
from pqkv.kernels.cuda.warp import WarpVariant
from pqkv.speed.sass import parse, phases
from pqkv.speed.static import GPUS, occupancy

CAPABILITIES = {(8, 0): GPUS["a100"], (9, 0): GPUS["h100"]}
GROUPS = (1, 2, 4, 8)
BESIDE = {"turning": True, "gains": True, "query": "float32"}  # codes of a frame meet a query of their own
MIXED = (("row", "row"), ("row", "transposed"), ("transposed", "row"))
DTYPES = ("float16", "bfloat16", "float32")
KERNELS = ("coded", "exact", "rows", "plain", "naive", "warp", "merge", "encode", "slots")
Row = dict[str, Any]
Named = tuple[str, Any, Any]  # what is compiled in words, the variant, how it is compiled


def chosen(kernel: str) -> Iterator[Named]:
    if kernel == "coded":
        for head_dim, nbits, group, beside in product((64, 128), (8, 6, 4), GROUPS, ({}, BESIDE)):
            codes = Codes(head_dim // 2, nbits, 2, "transposed")
            yield (
                f"d{head_dim} n{nbits} g{group}",
                coded_variant(group, codes, codes, **beside),
                compiling.compile_coded,
            )
        codes = Codes(32, 8, 4, "transposed")
        for group, beside in product(GROUPS, ({}, BESIDE)):
            yield f"d128 n8x4 g{group}", coded_variant(group, codes, codes, **beside), compiling.compile_coded
        for layouts, group in product(MIXED, (1, 4)):
            variant = coded_variant(group, *(Codes(64, 8, 2, layout) for layout in layouts))
            yield f"d128 n8 g{group} {'/'.join(layouts)}", variant, compiling.compile_coded
        codes = Codes(64, 8, 2, "transposed")
        for group, last in product((1, 4), ("tables", "scores", "softmax")):
            yield (
                f"d128 n8 g{group} to {last}",
                replace(coded_variant(group, codes, codes), last=last),
                (compiling.compile_coded),
            )
    elif kernel in ("exact", "rows"):
        for head_dim, dtype, group in product((64, 128), DTYPES, GROUPS):
            variant = fitting(ExactVariant(dtype, head_dim, group, query=dtype, paged=kernel == "exact"))
            yield f"d{head_dim} {dtype} g{group}", variant, compiling.compile_exact
    elif kernel == "plain":
        for group, layout, beside in product(GROUPS, ("row", "transposed"), ({}, BESIDE)):
            for nbits in (8, 6):
                codes = Codes(64, nbits, 2, layout)
                yield (
                    f"d128 n{nbits} g{group} {layout}",
                    PlainVariant(group, codes, codes, **beside),
                    (compiling.compile_plain),
                )
    elif kernel == "naive":
        for dtype in DTYPES:
            yield dtype, NaiveVariant(dtype, 128), compiling.compile_naive
        faults: tuple[Row, ...] = (
            {"room": 2048, "past_room": "dropped"}, {"room": 2048, "past_room": "aliased"}, {"own_warp_max": True},
            {"own_warp_sum": True},
        )  # fmt: skip
        for fault in faults:
            name = " ".join(map(str, fault.values() if "room" in fault else fault))
            yield f"float16 {name}", NaiveVariant("float16", 128, **fault), compiling.compile_naive
    elif kernel == "warp":
        for indexed in (False, True):
            yield "indexed" if indexed else "paged", WarpVariant(64, indexed), compiling.compile_warp
    elif kernel == "merge":
        for head_dim in (64, 128, 256):
            yield f"d{head_dim}", MergeVariant(head_dim), compiling.compile_merge
    elif kernel == "encode":
        for (M, nbits, d_sub), layout, dtype in product(
            ((64, 8, 2), (64, 6, 2), (32, 8, 4), (128, 4, 1)), ("row", "transposed"), DTYPES
        ):
            for more in (False, True):
                variant = EncodeVariant(Codes(M, nbits, d_sub, layout), 64, dtype, more, more)
                yield (
                    f"m{M} n{nbits} {layout} {dtype}{' permuted weighted' if more else ''}",
                    variant,
                    (compiling.compile_encode),
                )
    elif kernel == "slots":
        for bits in (16, 32):
            yield f"{bits} bits", bits, compiling.compile_slots


def block_of(kernel: str, variant: Any) -> int:  # noqa: ANN401 - a variant, or what stands for it
    """Threads."""
    of_others = {"merge": lambda: merge_block(variant.head_dim), "slots": lambda: 128, "warp": lambda: 32}
    return of_others.get(kernel, lambda: variant.block)()


def rows(kernels: tuple[str, ...], only: str = "") -> Iterator[Row]:
    for kernel in kernels:
        named = (one for one in chosen(kernel) if only in one[0])
        for (name, variant, compile_one), capability in product(named, CAPABILITIES):
            found = compile_one(variant, capability)
            report = found.report
            text = compiling.disassemble(found.cubin) or ""
            row: Row = {
                "kernel": kernel, "variant": name_of(name, variant),
                "sm": f"{capability[0]}{capability[1]}", "registers": report.registers, "spill": report.spill_bytes,
                "stack": report.stack_bytes, "shared": report.shared_bytes, "code": len(parse(text)[0]),
                "blocks": occupancy(report, block_of(kernel, variant), CAPABILITIES[capability]).blocks,
                "key_loop": "", "value_loop": "", "asked": (launch_bounds(variant, capability) or ("", ""))[1],
            }  # fmt: skip
            if kernel == "coded":
                seen = phases(text)
                for side, loop, words in (
                    ("key_loop", seen.keys, variant.entry_words),
                    ("value_loop", seen.values, variant.values.centroid_words),
                ):
                    if loop is not None:
                        row[side] = f"{len(loop.instructions) / (loop.lookups / words * variant.group):.2f}"
            yield row


def asked_for(compiled: compiling.Compiled, block: int, capability: tuple[int, int]) -> Row:
    """Of a kernel of which so many blocks of `block` threads are to fit, whatever that costs it."""
    report = compiled.report
    return {
        "registers": report.registers, "blocks": occupancy(report, block, CAPABILITIES[capability]).blocks,
        "spill": report.spill_bytes, "code": len(parse(compiling.disassemble(compiled.cubin) or "")[0]),
    }  # fmt: skip


def bounded(before: Path) -> Iterator[Row]:
    """Those that lost a block since `before`, as they are and asked for as many blocks as they had."""
    now = Path(__file__).with_name("kernel_resources.csv")
    had, have = ({key_of(row): row for row in csv.DictReader(text.open(newline=""))} for text in (before, now))
    lost = {key for key, row in had.items() if key in have and int(have[key]["blocks"]) < int(row["blocks"])}
    for kernel in sorted({key[0] for key in lost}):
        for (name, variant, compile_one), capability in product(chosen(kernel), CAPABILITIES):
            key = kernel, name_of(name, variant), f"{capability[0]}{capability[1]}"
            if key in lost:
                blocks = int(had[key]["blocks"])
                row: Row = dict(zip(("kernel", "variant", "sm"), key, strict=True)) | {"blocks_before": blocks}
                row |= {f"{one}_now": have[key][one] for one in ("registers", "blocks", "code")}
                compiled = compile_one(replace(variant, blocks=blocks), capability)
                asked = asked_for(compiled, block_of(kernel, variant), capability)
                yield row | {f"{one}_asked": value for one, value in asked.items()}


def name_of(name: str, variant: object) -> str:
    return name + (" beside" if getattr(variant, "turning", False) else "")


def key_of(row: Row) -> tuple[str, str, str]:
    return row["kernel"], row["variant"], row["sm"]


def differences(table: list[Row], before: Path) -> list[str]:
    with before.open(newline="") as file:
        old = {key_of(row): row for row in csv.DictReader(file)}
    lines = []
    for row in table:
        was = old.get(key_of(row))
        if was is None:
            lines.append(f"{row['kernel']} {row['variant']} sm_{row['sm']}: new")
            continue
        moved = [
            f"{name} {was.get(name, '')} -> {row[name]}"
            for name in list(row)[3:]
            if str(row[name]) != was.get(name, "")
        ]
        if moved:
            lines.append(f"{row['kernel']} {row['variant']} sm_{row['sm']}: {', '.join(moved)}")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS)
    parser.add_argument("--only", default="", help="variants whose name has this")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--ask", action="store_true", help="those that lost a block, asked for as many")
    given = parser.parse_args()
    if given.ask and not given.against:
        parser.error("--ask wants --against, the table with the blocks to ask for")
    table: list[Row] = []
    for row in bounded(given.against) if given.ask else rows(tuple(given.kernels), given.only):
        table.append(row)
        print(",".join(map(str, row.values())), flush=True)
    if given.output:
        with given.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
    if given.against and not given.ask:
        print("\n".join(["", *differences(table, given.against)]))
