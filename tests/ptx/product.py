"""Every kernel in every shape it is compiled for, as PTX of sm_80 and of sm_90, against float64:
`cd tests && python -m ptx.product --minutes 30 --csv FILE`.

A cell is a step of three lengths: none, all of the first of two splits, and one more than a whole number of pages; the
tokens of a split are dealt out to two warps at least. PTX that sm_80 has in common with sm_90
but for names is executed once, other PTX twice. The order is drawn by a seed, so that a part of the product is a sample
of it; each line says what became of a cell.
"""

import argparse
import csv
import re
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from random import Random
from time import monotonic

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent / "kernels"))  # as conftest.py does for pytest

from batches import Spec, brute_force, build
from served import TURNING

from pqkv.kernels.cuda import backend, naive, warp
from pqkv.kernels.cuda.coded import Codes, coded_variant
from pqkv.kernels.cuda.encode import write_slots
from pqkv.kernels.cuda.merge import MergeVariant
from ptx.backend import Device, Patched
from ptx.cases import Wrong, attend, check_rows, merge
from ptx.encoded import Case as Encoded
from ptx.encoded import check as check_encoded
from ptx.faults import PtxFault

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYOUTS = [("transposed", "transposed"), ("row", "row"), ("row", "transposed"), ("transposed", "row")]
BITS, GROUPS, HEAD_DIMS = (8, 6, 4), (1, 2, 4, 8), (64, 128)
SPLITS, SPARE = 2, 2  # pages that a row of the table has beside those that are used
_COLUMNS = "cell", "launches", "statements", "executed", "seconds", "outcome"


@dataclass(frozen=True, slots=True)
class Cell:
    """One point of the product: `kernel` in so many bits (0 where nothing is coded), query heads to a KV head, layouts
    of keys and values, elements of a head. `beside`: a bias by position and gains; of a merge, uneven groups.
    """

    kernel: str
    dtype: str = "float16"
    nbits: int = 0
    group: int = 1
    layouts: tuple[str, str] = ("row", "row")
    head_dim: int = 64
    beside: bool = False

    def __str__(self):
        coded = (f"{self.nbits} bits", "/".join(self.layouts)) if self.nbits else ()
        words = (self.kernel, self.dtype, *coded, f"group {self.group}", f"d {self.head_dim}")
        return " ".join((*words, "beside") if self.beside else words)

    def run(self):
        """Launch it on the device that is installed. Raises `Wrong`, `AssertionError` or `PtxFault`."""
        _RUN[self.kernel](self)


def cells():
    """All of them."""
    for nbits, group, layouts, head_dim in product(BITS, GROUPS, LAYOUTS, HEAD_DIMS):
        for kernel, dtype in (("coded", "float16"), ("plain", "float32")):
            for beside in (False, True) if layouts[0] == layouts[1] else (False,):
                yield Cell(kernel, dtype, nbits, group, layouts, head_dim, beside)
    for dtype, group, head_dim in product(DTYPES, GROUPS, HEAD_DIMS):
        for kernel in ("exact", "rows", "naive"):
            yield Cell(kernel, dtype, group=group, head_dim=head_dim)
    for group, head_dim in product(GROUPS, HEAD_DIMS):
        yield Cell("warp", "float32", group=group, head_dim=head_dim)
    for dtype, head_dim, beside in product(DTYPES, HEAD_DIMS, (False, True)):
        yield Cell("merge", dtype, group=6, head_dim=head_dim, beside=beside)
    for dtype, nbits, layout, head_dim, beside in product(
        DTYPES, BITS, ("row", "transposed"), HEAD_DIMS, (False, True)
    ):
        yield Cell("encode", dtype, nbits, layouts=(layout, layout), head_dim=head_dim, beside=beside)
    for dtype in DTYPES:
        yield Cell("slots", dtype)


def run_on_both(cell, device):
    """`cell` as PTX of sm_90, and as that of sm_80 where it is another; how often it was executed."""
    device.capability = (9, 0)
    device.asked.clear()
    cell.run()
    if all(same_but_for_names(of((8, 0)), of((9, 0))) for of in tuple(device.asked)):
        return 1
    device.capability = (8, 0)
    cell.run()
    return 2


def same_but_for_names(ptx, other):
    """Whether two texts of PTX differ in nothing but their target, names, and the order in which variables stand."""
    return _plain(ptx) == _plain(other)


def _plain(ptx):
    """(declarations, the rest) with names numbered as they are first used by instructions."""
    text = re.sub(r"//[^\n]*|\.target[^\n]*", "", ptx)
    text = re.sub(r"_ZN\w+?(?=_param_\d+\b|\W)", "kernel", text)
    head, entry, body = text.partition(".visible .entry")
    numbers: dict[str, str] = {}

    def number(found):
        return numbers.setdefault(found[0], f"smem_{len(numbers)}")

    body = re.sub(r"_cudapy_smem_\d+", number, body)
    head = re.sub(r"_cudapy_smem_\d+", number, head)
    return sorted(filter(None, map(str.strip, head.split("\n")))), entry + body


def lengths(pages, page_size):
    """None, all tokens of the first split, and one more than all pages but the last of `pages` have."""
    return 0, (pages + SPARE) * page_size // SPLITS, (pages - 1) * page_size + 1


def _codes(cell):
    sides = [Codes(cell.head_dim // 2, cell.nbits, 2, layout) for layout in cell.layouts]
    if cell.kernel == "coded":  # lanes have several tokens
        pages, page_size = coded_variant(cell.group, *sides).key_tokens, 64
    else:
        pages, page_size = 6, 16
    spec = Spec(
        context=lengths(pages, page_size), page_size=page_size, heads=2, group=cell.group, nbits=cell.nbits,
        layouts=cell.layouts, dtype=DTYPES[cell.dtype], head_dim=cell.head_dim, subspaces=(cell.head_dim // 2,) * 2,
        unused="poison", turning=TURNING if cell.beside else None, gains=cell.beside,
    )  # fmt: skip
    attend(spec, splits=SPLITS, cancelling=cell.beside)


def _exact_spec(cell, **more):
    return Spec(
        context=lengths(6, 16), page_size=16, heads=2, group=cell.group, head_dim=cell.head_dim, nbits=None,
        dtype=DTYPES[cell.dtype], unused="poison", **more,
    )  # fmt: skip


def _exact(cell):
    attend(_exact_spec(cell), splits=SPLITS)


def _rows(cell):
    """Sinks and a residual, and no pages."""
    spec = _exact_spec(cell, sinks=(1, 4, 0), residual=(3, 0, 40)).but(context=(0, 0, 0))
    batch, scale = build(spec), cell.head_dim**-0.5
    found = backend.Step(batch.query, None, batch.sinks, batch.residual, scale, 0).run()
    check_rows(found, brute_force(batch, scale), spec.dtype)


def _alone(attention):
    """Of a kernel that serves exact pages and nothing else, and writes float32."""

    def run(cell):
        batch, scale = build(_exact_spec(cell)), cell.head_dim**-0.5
        check_rows(attention(batch, scale), brute_force(batch, scale), DTYPES[cell.dtype])

    return run


def _merge(cell):
    variant = MergeVariant(cell.head_dim, cell.dtype, uneven=cell.beside)
    merge(variant, cell.group, kv_heads=2, block=2 if cell.beside else 0)


def _encode(cell):
    check_encoded(
        Encoded(
            cell.nbits, subspaces=cell.head_dim // 2, layout=cell.layouts[0], dtype=DTYPES[cell.dtype],
            permuted=cell.beside,
        )
    )  # fmt: skip


def slots(dtype):
    """A new token in the slot of each sequence; one outside is padding. Bit for bit."""
    draw = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(4, 2, 1, 48, generator=draw).to(dtype) for _ in range(2))
    buffers = [torch.full((4, 2, 3, 48), -5.0).to(dtype) for _ in range(2)]
    expected = [buffer.clone() for buffer in buffers]
    positions = torch.tensor([2, -1, 3, 0], dtype=torch.int32)
    for buffer, new in zip(expected, (keys, values), strict=True):
        buffer[0, :, 2], buffer[3, :, 0] = new[0, :, 0], new[3, :, 0]
    write_slots(keys, values, *buffers, positions)
    for buffer, wanted in zip(buffers, expected, strict=True):
        if not torch.equal(buffer, wanted):
            raise Wrong("a slot is another")


_RUN = {
    "coded": _codes, "plain": _codes, "exact": _exact, "rows": _rows,
    "naive": _alone(lambda batch, scale: naive.attention(*batch.inputs, scale=scale)),
    "warp": _alone(lambda batch, scale: warp.decode_by_warps(batch.query, batch.pages, scale=scale, window=None)),
    "merge": _merge, "encode": _encode, "slots": lambda cell: slots(DTYPES[cell.dtype]),
}  # fmt: skip


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m ptx.product", description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    parser.add_argument("--minutes", type=float, help="to end after; all of the product if not given")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="a row of each cell; those in it are not run again")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    device, everything = Device().install(Patched()), list(cells())
    Random(asked.seed).shuffle(everything)
    rows = _read(asked.csv)
    known = {row["cell"] for row in rows}
    until = monotonic() + 60 * asked.minutes if asked.minutes else float("inf")
    for cell in everything:
        if str(cell) in known:
            continue
        if monotonic() > until:
            break
        rows.append(_row(cell, device))
        print(", ".join(f"{value}" for value in rows[-1].values()), flush=True)
        if asked.csv is not None:
            with asked.csv.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(sorted(rows, key=lambda row: row["cell"]))
    total = {name: sum(int(row[name]) for row in rows) for name in ("launches", "statements")}
    wrong = [row for row in rows if row["outcome"] != "ok"]
    seconds = sum(float(row["seconds"]) for row in rows)
    print(
        f"{len(rows)} of {len(everything)} cells, {total['launches']} launches, {total['statements']} statements of "
        f"warps, {seconds:.0f} s; faults: {len(wrong)}"
    )
    return 1 if wrong else 0


def _row(cell, device):
    launches, steps, began, executed, outcome = device.launches, device.steps, monotonic(), "", "ok"
    try:
        executed = run_on_both(cell, device)
    except (Wrong, AssertionError, PtxFault) as fault:
        outcome = f"{type(fault).__name__}: {' '.join(str(fault).split())[:200]}"
    return {
        "cell": str(cell), "launches": device.launches - launches, "statements": device.steps - steps,
        "executed": executed, "seconds": f"{monotonic() - began:.1f}", "outcome": outcome,
    }  # fmt: skip


def _read(file):
    """Of a file that was written before."""
    if file is None or not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as rows:
        return list(csv.DictReader(rows))


if __name__ == "__main__":
    sys.exit(main())
