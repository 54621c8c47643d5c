"""What `make gpu DRY=1` does, on any machine: tests are collected, every kernel of every grid is compiled and assembled
for a GPU that need not be here, and cells are listed with their sizes and how long they took where they were last run.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from itertools import pairwise
from math import log
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pqkv.codec import code_geometry
from pqkv.config import BenchConfig, CodeShape
from pqkv.env import usable_cores
from pqkv.kernels.cuda.backend import heads_of_block
from pqkv.kernels.cuda.coded import CodedVariant, Codes, coded_variant
from pqkv.kernels.cuda.compile import Report, compile_coded, compile_exact, compile_merge
from pqkv.kernels.cuda.exact import ExactVariant, fitting
from pqkv.kernels.cuda.merge import MergeVariant
from pqkv.record import load_records
from pqkv.speed.served_parts import SERVED_PARTS

CAPABILITY = (9, 0)
Kernel = CodedVariant | ExactVariant | MergeVariant
Made = dict[Kernel, Future[Report]]
_LISTS = {"lengths": int, "batch": int, "bits": float}
_SWITCHES = {
    "--no-fallback": ("fallback", False),
    "--breakdown": ("breakdown", True),
    "--end-to-end": ("end_to_end", True),
}
_NAMES = {"--kv-heads": "kv_heads", "--head-dim": "head_dim"}


def bench_config(command: Sequence[str]) -> BenchConfig | None:
    """What a command asks `pqkv bench` for; None for other commands, and for those that bring a model."""
    if "bench" not in command or "--end-to-end" in command:
        return None
    given: dict[str, Any] = {}
    words = iter(command[command.index("bench") + 1 :])
    for word in words:
        if word in _SWITCHES:
            name, value = _SWITCHES[word]
            given[name] = value
        elif word == "-o":
            next(words)
        else:
            name, text = _NAMES.get(word, word.removeprefix("--")), next(words)
            if name == "served":
                given[name] = () if text == "none" else tuple(text.split(","))
            else:
                given[name] = tuple(map(_LISTS[name], text.split(","))) if name in _LISTS else text
    return BenchConfig(**given)


def configs(command: Sequence[str]) -> list[BenchConfig]:
    """Those of a command of `pqkv bench`, or of the race of recipe pqkv's parts; none of others."""
    if (config := bench_config(command)) is not None:
        return [config]
    if not any(word.endswith("serving/parts.py") for word in command):
        return []
    given = {name: command[command.index(f"--{name}") + 1] for name in ("bits", "dtype")}
    bits = tuple(map(float, given["bits"].split(",")))
    lengths = (4096, 32768) if "--lengths" not in command else (int(command[command.index("--lengths") + 1]),)
    batch = (1,) if "--batch" not in command else (int(command[command.index("--batch") + 1]),)
    asked = [word for before, word in pairwise(command) if before == "--part"] or list(SERVED_PARTS)
    shared = {"dtype": given["dtype"], "bits": bits, "lengths": lengths, "batch": batch}
    return [BenchConfig(served=SERVED_PARTS[part], **shared) for part in asked]


def kernels(config: BenchConfig) -> Iterator[Kernel]:
    """What the backend launches for it: kernels on codes and on exact pages, that of sinks and residual, the merge."""
    D, group, exact = config.head_dim, heads_of_block(config.heads // config.kv_heads), not all(config.bits)
    turned = {"frame", "turning"} & set(config.served)  # then codes meet a query of their own, in float32
    for bits in filter(None, config.bits):
        M, nbits = code_geometry(CodeShape(bits=bits), D)
        sides = (Codes(M, nbits, D // M, layout) for layout in (config.key_layout, config.value_layout))
        yield coded_variant(
            group,
            *sides,
            turning="turning" in config.served,
            gains="gains" in config.served,
            query="float32" if turned else config.dtype,
        )
    for paged in (True, False) if exact else (False,):
        yield fitting(ExactVariant(config.dtype, D, group, query=config.dtype, paged=paged))
    yield MergeVariant(D, config.dtype)


def assembled(kernel: Kernel) -> Report:
    """Compile and assemble it. Raises `KernelError` where it cannot be."""
    if isinstance(kernel, MergeVariant):
        return compile_merge(kernel, CAPABILITY).report
    if isinstance(kernel, ExactVariant):
        return compile_exact(kernel, CAPABILITY).report
    return compile_coded(kernel, CAPABILITY).report


def cells(config: BenchConfig) -> Iterator[tuple[float, int, int, float]]:
    """Bits, batch, tokens, and bytes of the exact keys and values that the cell is held to, one copy of them."""
    exact = {"float32": 4, "float16": 2, "bfloat16": 2}[config.dtype] * 2 * config.kv_heads * config.head_dim
    for batch in config.batch:
        for tokens in config.lengths:
            for bits in config.bits:
                yield bits, batch, tokens, float(exact * batch * tokens)


class Seconds:
    """How long cells took that have records, by the bytes of their exact cache: the nearest of them tells of others."""

    def __init__(self, folder: Path) -> None:
        found = [r for r in load_records(folder) if r.kind == "bench" and r.status == "ok"]
        self.known = [(_exact_bytes(r.config), r.seconds) for r in found if r.config.get("backend") == "cuda"]

    def of(self, nbytes: float) -> float | None:
        """None where nothing was recorded."""
        near = sorted((abs(log(nbytes / known)), seconds) for known, seconds in self.known)[:5]
        return sum(seconds for _, seconds in near) / len(near) if near else None


def _exact_bytes(config: dict[str, Any]) -> float:
    size = 4 if config["dtype"] == "float32" else 2
    return float(2 * size * config["batch"] * config["kv_heads"] * config["head_dim"] * config["context"])


def collected(command: Sequence[str], root: Path) -> int:
    """Tests of a pytest command. Raises `ValueError` with pytest's words where one cannot be collected or none is."""
    own = [word for word in command if word not in ("-n", "auto")]
    ran = subprocess.run([*own, "--collect-only"], cwd=root, capture_output=True, text=True, check=False)
    whole = re.search(r"^(\d+)(?:/\d+)? tests? collected", ran.stdout, re.MULTILINE)
    each = re.findall(r"^\S+\.py: (\d+)$", ran.stdout, re.MULTILINE)  # with -qq a file is a line
    count = int(whole[1]) if whole else sum(map(int, each))
    if ran.returncode or not count:
        raise ValueError((ran.stdout.strip() or ran.stderr.strip()).splitlines()[-1])
    return count


@contextmanager
def assembling(wanted: Iterable[Kernel]) -> Iterator[Made]:
    """`assembled` of each in processes of their own, as many as there are cores: compiling is what a dry run waits
    for. What has not begun when it is left is not made.
    """
    pool = ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn"))
    try:
        yield {kernel: pool.submit(assembled, kernel) for kernel in wanted}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def dry_run(
    steps: Iterable[Any], root: Path, assemble: Callable[[Iterable[Kernel]], AbstractContextManager[Made]] = assembling
) -> int:
    """Print a line a step; 1 where something cannot be collected or compiled."""
    seconds = Seconds(root / "results" / "gpu" / "bench")
    steps, reports = list(steps), dict[Kernel, Report]()
    every: dict[Kernel, None] = {}
    for step in steps:
        with suppress(Exception):  # what is wrong with a step is told in its turn
            every |= dict.fromkeys(kernel for config in configs(step.command) for kernel in kernels(config))
    failed: list[str] = []
    minutes = 0.0
    with assemble(every) as made:
        for step in steps:
            said, takes = "", step.minutes
            try:
                if "pytest" in step.command:
                    said = f"{collected(step.command[step.command.index(sys.executable) :], root)} tests"
                elif asked := configs(step.command):
                    wanted = list(dict.fromkeys(kernel for config in asked for kernel in kernels(config)))
                    reports |= {kernel: made[kernel].result() for kernel in wanted}
                    listed = [cell for config in asked for cell in cells(config)]
                    times = [seconds.of(nbytes) for *_, nbytes in listed]
                    if all(times) and "bench" in step.command and "--breakdown" not in step.command:
                        takes = sum(filter(None, times)) / 60
                    said = (
                        f"{len(listed)} cells, exact caches up to {max(cell[-1] for cell in listed) / 1e9:.1f} GB; "
                        f"{len(wanted)} kernels for sm_{CAPABILITY[0]}{CAPABILITY[1]}, "
                        f"{', '.join(str(reports[kernel].registers) for kernel in wanted)} registers"
                    )
            except Exception as error:  # noqa: BLE001 - whatever is wrong with a step, the others are looked at
                failed.append(step.name)
                said = f"FAILED: {error}"
            minutes += takes
            print(f"{step.name}: {said or 'a command of its own'}; at most {takes:.1f} min", flush=True)
    spilled = sum(report.spill_bytes > 0 for report in reports.values())
    print(f"{len(reports)} kernels compiled, {spilled} of them spill; {minutes:.0f} minutes at most in all")
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr)
    return 1 if failed else 0
