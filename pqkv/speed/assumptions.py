"""What the model of `pqkv bench --static` takes for granted, each with where it is from, and what it leaves out of a
decoding step, counted.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from pqkv.config import BenchConfig
from pqkv.kernels.cuda.coded import CodedVariant
from pqkv.kernels.cuda.compile import Capability, compile_coded, compile_exact, compile_merge, disassemble
from pqkv.kernels.cuda.exact import ExactVariant, fitting
from pqkv.kernels.cuda.merge import MergeVariant
from pqkv.speed.sass import parse, phases
from pqkv.speed.static import CONFLICTS, MOST_CONFLICTS, UNROLLED, Gpu

_SHEET = "NVIDIA's data sheet of the {name}"
_GUIDE = "CUDA programming guide, table of compute capabilities"
_PAPER = "NVIDIA's white paper on the architecture"
_NODES = 3  # of a step on product codes, as tests/kernels/cuda/test_launches.py counts them
_WAITS = ("BAR", "DEPBAR", "LDGDEPBAR")


class Assumption(NamedTuple):
    """One number or rule of the model and its source; `taken` says so where it has none but plausibility."""

    what: str
    value: str
    source: str


class LeftOut(NamedTuple):
    """Something of a step that the model gives no time, and how much of it there is."""

    what: str
    amount: str
    counted: str


def assumptions(gpu: Gpu) -> list[Assumption]:
    """Of the model on `gpu`, each with its source."""
    sheet, conflicts = _SHEET.format(name=gpu.name.upper()), ", ".join(f"{n}: {c:g}" for n, c in CONFLICTS.items())
    return [
        Assumption("memory bandwidth, all of it", f"{gpu.hbm_gbs:,.0f} GB/s", sheet),
        Assumption("clock, also under load", f"{gpu.clock_ghz:g} GHz", f"{sheet}: peak of float32 over lanes * 2"),
        Assumption("multiprocessors", f"{gpu.multiprocessors}", _PAPER),
        Assumption("second-level cache", f"{gpu.l2_bytes_per_clock:,} bytes a clock", f"{_PAPER}; A100's on Hopper"),
        Assumption("instructions started", f"{gpu.issues_per_clock} of 32 lanes a clock", f"{_PAPER}: four schedulers"),
        Assumption("shared memory", f"{gpu.wavefronts_per_clock:g} wavefront of 32 banks a clock", _GUIDE),
        Assumption("shared memory of a multiprocessor", f"{gpu.shared_bytes >> 10} KiB, 1 KiB a block more", _GUIDE),
        Assumption("registers of a multiprocessor", f"{gpu.registers:,}, by 256 to a warp", _GUIDE),
        Assumption("warps and blocks of a multiprocessor", f"{gpu.warps} and {gpu.blocks}", _GUIDE),
        Assumption("wavefronts of a key look-up by entries", conflicts, "counted: 32 uniform draws, 32 banks"),
        Assumption("the same of larger tables", f"{MOST_CONFLICTS:g}", "counted: most of 32 lanes at one of 32 banks"),
        Assumption("wavefronts of a value look-up", "1 a word", "layout of tables: lanes own subspaces"),
        Assumption("instructions of a look-up, of a table's word", "of the loop", "counted: SASS by ptxas, nvdisasm"),
        Assumption("a table's word where no loop is left", f"{UNROLLED:g} instructions", "taken: as loops have"),
        Assumption("look-ups and bytes", "overlap, the slower counts", "taken: warps hide each other's waits"),
        Assumption("tables", "built once a block, overlap nothing", "the kernel: barriers on both sides"),
        Assumption("blocks", "equally long; the fullest decides", "the kernel: equal stretches"),
        Assumption("partial results", "written and read once", "the kernels"),
    ]  # fmt: skip


def left_out(config: BenchConfig, variant: CodedVariant, gpu: Gpu) -> list[LeftOut]:
    """Of a step on product codes that `variant` serves. Instructions are not known without a disassembler: their count
    is empty then. Raises `KernelError` where the assembler is missing.
    """
    dtype = "float16" if config.dtype == "float32" else config.dtype  # queries that the kernel on codes serves
    rows = fitting(ExactVariant(dtype, config.head_dim, variant.group, query=dtype, paged=False))
    merge = MergeVariant(config.head_dim, dtype)
    inner, everything, waits = _of_codes(variant, gpu.capability)
    around = f"{everything - inner} of {everything} instructions" if everything else ""
    return [
        LeftOut("nodes of the graph", f"{_NODES}", "launches: sinks and residual, pages, merge"),
        LeftOut("sinks and residual but for their bytes", f"{_code(rows, gpu.capability)} instructions", "SASS"),
        LeftOut("the merge", f"{_code(merge, gpu.capability)} instructions, {config.heads} blocks a sequence", "SASS"),
        LeftOut("barriers and waits for copies", waits, "SASS of the kernel on codes, some of them once a stage"),
        LeftOut("all but look-ups and tables", around, "SASS of the kernel on codes: query, softmax, weights, results"),
        LeftOut(
            "what recipe pqkv adds", "a bias, gains, a query of their own", "kernels of product codes are modelled"
        ),
        LeftOut("latency that few warps leave open, the clock under load", "not counted", "nothing here runs"),
    ]


@cache
def _of_codes(variant: CodedVariant, capability: Capability) -> tuple[int, int, str]:
    """(instructions of the four loops of the model, of the kernel, barriers and waits) by its SASS."""
    text = disassemble(compile_coded(variant, capability).cubin)
    if text is None:
        return 0, 0, ""
    code, seen = parse(text)[0], phases(text)
    loops = [one for one in (seen.keys, seen.values, seen.key_tables, seen.value_tables) if one is not None]
    waits = sum(one.name in _WAITS for one in code)
    return len({one.address for loop in loops for one in loop.instructions}), len(code), f"{waits}"


@cache
def _code(variant: MergeVariant | ExactVariant, capability: Capability) -> str:
    """Instructions of the whole kernel; empty where there is no disassembler."""
    compiled = (
        compile_merge(variant, capability) if isinstance(variant, MergeVariant) else compile_exact(variant, capability)
    )
    text = disassemble(compiled.cubin)
    return "" if text is None else f"{len(parse(text)[0])}"
