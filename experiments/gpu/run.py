"""Everything that needs an NVIDIA GPU, in resumable steps: `make gpu`, or this file with any Python that has torch.

    python experiments/gpu/run.py [--minutes 30] [--only NAME] [--list] [--again] [--dry]

Each step is a command of a few minutes. A finished step is not run again (`--again` forgets that); a grid that was cut
off goes on from its records. Neither FAISS nor a network is needed. Records go to results/gpu/bench, /breakdown, /parts
and /end-to-end, what the profiler counts, logs and what was done to results/gpu. With pytest-xdist the tests run on
every core: compiling is what they wait for. `--dry` runs nothing and needs no GPU: see `dry.py`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOGS = ROOT / "results" / "gpu"
PQKV = (sys.executable, "-c", "from pqkv_cli.main import main; main()")
LENGTHS = "1024,2048,4096,8192,16384,32768,65536,131072"
GROUPS = {1: ("32", "32"), 4: ("32", "8"), 8: ("64", "8")}  # query and KV heads


@dataclass(frozen=True)
class Step:
    """A command; `minutes` bound it, `missing` says why it cannot run here."""

    name: str
    command: tuple[str, ...]
    minutes: float = 10
    missing: str | None = None


def steps() -> Iterator[Step]:
    """In order of worth."""
    pytest = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
    attention = "tests/kernels/cuda/test_attention.py"
    yield Step("environment", (*PQKV, "env"), 2)
    if find_spec("xdist") is not None:
        yield Step("tests", (*pytest, "-n", "auto", "tests/kernels/cuda"))
    else:
        yield from test_steps(pytest, attention)
    tool = shutil.which("compute-sanitizer")
    # errors of the API are what cuda-python gets when it asks the driver for functions that it does not have
    checked = (tool or "", "--error-exitcode", "9", "--report-api-errors", "no", *pytest, attention)
    yield Step(
        "sanitizer",
        (*checked, "-k", "exact_pages or fp16_tables or naive_kernel"),
        missing=None if tool else "compute-sanitizer is not installed",
    )
    for group, (heads, kv_heads) in GROUPS.items():
        for batch in (1, 8, 32):
            lengths = LENGTHS if batch < 32 else LENGTHS.removesuffix(",65536,131072")
            yield Step(
                f"grid-group{group}-batch{batch}",
                (
                    *PQKV, "bench", "--backend", "cuda", "--no-fallback", "--dtype", "float16", "--heads", heads,
                    "--kv-heads", kv_heads, "--batch", str(batch), "--bits", "0,4,3,2", "--lengths", lengths,
                    "--served", "none", "-o", "results/gpu/bench",
                ),
            )  # fmt: skip
    for group, (heads, kv_heads) in GROUPS.items():
        yield Step(
            f"recipe-group{group}",
            (
                *PQKV, "bench", "--backend", "cuda", "--no-fallback", "--dtype", "float16", "--heads", heads,
                "--kv-heads", kv_heads, "--batch", "1,8", "--bits", "4,2", "--lengths", "4096,32768",
                "-o", "results/gpu/bench-recipe",
            ),
        )  # fmt: skip
    for group, (heads, kv_heads) in GROUPS.items():
        yield Step(
            f"breakdown-group{group}",
            (
                *PQKV, "bench", "--breakdown", "--backend", "cuda", "--no-fallback", "--dtype", "float16", "--heads",
                heads, "--kv-heads", kv_heads, "--bits", "0,4,3,2", "--lengths", "4096,32768", "-o",
                "results/gpu/breakdown",
            ),
        )  # fmt: skip
    parts = (sys.executable, "experiments/serving/parts.py", "--device", "cuda", "--dtype", "float16", "--bits", "4,2")
    kept = ("--placements", "1", "--repeats", "21", "-o", "results/gpu/parts")  # captured graphs keep their places
    yield Step("parts-batch8", (*parts, "--batch", "8", "--lengths", "32768", *kept))
    yield Step("parts-batch1", (*parts, "--part", "product codes", "--part", "all", *kept))
    for model, batch, lengths in (
        ("tinyllama", "1,8", "1024,8192"), ("llama-3.1-8b", "1,8", "4096,32768"),
        ("llama-2-7b", "1", "4096,32768"),  # its 32 KV heads take 137 GB at batch 8 and 32K
    ):  # fmt: skip
        yield Step(
            f"end-to-end-{model}",
            (
                *PQKV, "bench", "--end-to-end", "--model", model, "--backend", "cuda", "--no-fallback", "--dtype",
                "float16", "--batch", batch, "--bits", "0,4,2", "--lengths", lengths, "-o", "results/gpu/end-to-end",
            ),
        )  # fmt: skip
    for name in ("incremental-decode", "paged-kernel"):
        yield Step(name, (*PQKV, "reproduce", name))
    profiler = shutil.which("ncu")
    yield Step(
        "kernels", (sys.executable, "experiments/gpu/kernels.py"), missing=None if profiler else "ncu is not installed"
    )
    for folder in ("bench", "end-to-end", "breakdown"):
        of = f"results/gpu/{folder}"
        yield Step(f"report-{folder}", (*PQKV, "report", of, "-o", of), 3)


def test_steps(pytest: tuple[str, ...], attention: str) -> Iterator[Step]:
    """The tests of the kernels on one core, in steps of minutes."""
    for file in sorted((ROOT / "tests" / "kernels" / "cuda").glob("test_*.py")):
        if file.name != "test_attention.py":
            yield Step(f"tests-{file.stem.removeprefix('test_')}", (*pytest, str(file.relative_to(ROOT))))
    yield Step("tests-attention", (*pytest, attention, "-k", "not every_length and not every_layout"))
    for dtype in ("dtype0", "dtype1", "dtype2"):  # as pytest numbers them: each compiles some 24 kernels
        yield Step(f"tests-lengths-{dtype}", (*pytest, attention, "-k", f"every_length and {dtype}"))
    for layouts in ("layouts0", "layouts1", "layouts2"):
        yield Step(f"tests-{layouts}", (*pytest, attention, "-k", f"every_layout and {layouts}"))


def run(step: Step) -> int | None:
    """Run one step with its output in LOGS/NAME.log and on the screen; 124 where its minutes ran out, None where what
    it needs is missing: another time it may be there.
    """
    if step.missing:
        print(f"{step.name}: left out, {step.missing}", flush=True)
        return None
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "cli")))}
    start = time.monotonic()
    with (LOGS / f"{step.name}.log").open("w") as log:
        try:
            code = subprocess.run(
                step.command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, timeout=60 * step.minutes,
                check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = 124
    tail = (LOGS / f"{step.name}.log").read_text(errors="replace").splitlines()[-12:]
    print(f"{step.name}: exit {code} after {time.monotonic() - start:.0f} s", *tail, sep="\n  ", flush=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, help="start no step after this long")
    parser.add_argument("--only", action="append", help="this step, or all whose names begin so; repeatable")
    parser.add_argument("--list", action="store_true", help="name the steps and whether they are done")
    parser.add_argument("--again", action="store_true", help="run finished steps again")
    parser.add_argument("--dry", action="store_true", help="collect tests, compile kernels and plan cells; run nothing")
    given = parser.parse_args()
    chosen = [s for s in steps() if not given.only or any(s.name.startswith(name) for name in given.only)]
    if not chosen:
        print(f"no step is called {', '.join(given.only)}; --list names them", file=sys.stderr)
        return 2
    if given.dry:
        from dry import dry_run  # beside this file; imports pqkv, which `--list` does without

        return dry_run(chosen, ROOT)
    LOGS.mkdir(parents=True, exist_ok=True)
    done = {step.name: LOGS / f"{step.name}.done" for step in chosen}
    if given.list:
        for step in chosen:
            print(f"{'done' if done[step.name].exists() else '    '}  {step.name}")
        return 0
    import torch

    if not torch.cuda.is_available():
        print(
            "error: torch finds no NVIDIA GPU here; nvidia-smi shows whether there is one, and a torch built for CUDA "
            "is needed (`make test` runs all that needs none)",
            file=sys.stderr,
        )
        return 2
    start, failed = time.monotonic(), []
    for step in chosen:
        if done[step.name].exists() and not given.again:
            continue
        if given.minutes is not None and time.monotonic() - start > 60 * given.minutes:
            print("time is up; the same command goes on from here")
            break
        code = run(step)
        if code == 0:
            done[step.name].touch()
        elif code is not None:
            failed.append(step.name)
    print("failed or cut off: " + ", ".join(failed) if failed else "all steps that ran are done")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
