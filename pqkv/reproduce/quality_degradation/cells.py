"""Part a: each defect of a paged attention alone, and five together, decoding on from the same correct prefill.

Exact pages for the faults of the kernel, codes for those of the paged PQ code; for each kind the same run without a
fault. On a machine with a GPU every fault runs there too, in a process of its own: a fault may leave a GPU unusable.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch

from pqkv.cell import run_cell
from pqkv.config import EvalConfig
from pqkv.env import environment, git_state
from pqkv.errors import KernelError
from pqkv.kernels import check_backend
from pqkv.kernels.faults import FAULTS
from pqkv.lm import load_model
from pqkv.quality.cell_run import Shared
from pqkv.quality.evaluate import Progress, evaluate
from pqkv.record import Record, RecordStore
from pqkv.reproduce.quality_degradation.settings import Settings
from pqkv.reproduce.run import Request

COMMAND = (sys.executable, "-c", "from pqkv_cli.main import main; main()")
_SECONDS = 900


def part_a(settings: Settings, request: Request) -> Iterator[Record]:
    """A record for every fault and context, and for the codes without a fault."""
    lm = load_model(settings.model)
    shared = Shared(lm, keep=True)
    plan = [(name, 0.0 if FAULTS[name].in_kernel else settings.bits) for name in settings.faults]
    if any(bits for _, bits in plan):
        plan.append(("auto", settings.bits))
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    total, number = len(plan) * len(settings.contexts) * len(devices), 0
    for context in settings.contexts:  # outermost: all faults of a context decode on from the same prefills
        for name, bits in plan:
            for device in devices:
                number += 1
                stage = f"cell {number} of {total}: {name} on {device}, {context} tokens"
                config = config_of(settings, name, bits, context, device)
                if device == "cuda":
                    request.report(stage, 0, 1)
                    yield apart(config, request, weights=lm.fingerprint)
                else:

                    def tell(progress: Progress, stage: str = stage) -> None:
                        request.report(stage, progress.done, progress.total)

                    yield from evaluate(config, request.store, force=request.force, report=tell, shared=shared)


def config_of(settings: Settings, backend: str, bits: float, context: int, device: str) -> EvalConfig:
    """The evaluation of a cell. Raises `ConfigError` for a backend that there is not."""
    check_backend(backend)
    values = {
        "model": settings.model, "device": device, "data": settings.data, "bits": (bits,),
        "recipe": "product", "context": (context,),  # as the report's codes were
        "mode": ("decode",), "decode_tokens": settings.decode_tokens, "windows": settings.windows,
        "page_size": settings.page_size, "residual": max(128, settings.page_size), "backend": backend,
        "fallback": False, "recall_form": settings.recall_form, "seed": settings.seed,
    }  # fmt: skip
    return EvalConfig.parse(values, source="experiment quality-degradation")


def apart(config: EvalConfig, request: Request, command: Sequence[str] = COMMAND, *, weights: str) -> Record:
    """Run one cell, of the model with these `weights`, as a command in a process of its own; what ends without a record
    is a failed one.
    """
    ran = (r for r in request.store.load_all() if r.status == "ok")
    known = next((r for r in ran if r.config["model_weights"] == weights and _is_of(r, config)), None)
    if known is not None and not request.force:
        return known
    with TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [*command, *_flags(config), "-o", folder], capture_output=True, text=True, check=False, timeout=_SECONDS
            )
            said = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        except subprocess.TimeoutExpired:
            said = [f"its process did not end within {_SECONDS} s"]
        found = RecordStore(folder).load_all()
    if found:
        request.store.write(found[0])
        return found[0]

    def failed() -> NoReturn:
        raise KernelError(f"{config.backend} on {config.device} left no record: {said[-1]}")

    described = config.model_dump(mode="json") | {
        "bits": config.bits[0],
        "context": config.context[0],
        "mode": "decode",
    }
    return run_cell(
        failed, kind="eval", config=described, seed=config.seed, env=environment(), git=git_state(),
        store=request.store, force=True,
    )  # fmt: skip


def _flags(config: EvalConfig) -> list[str]:
    return [
        "eval", "--device", config.device, "--model", config.model, "--data", config.data,
        "--bits", f"{config.bits[0]:g}", "--recipe", config.recipe, "--mode", "decode",
        "--context", str(config.context[0]),
        "--decode-tokens", str(config.decode_tokens), "--windows", str(config.windows),
        "--page-size", str(config.page_size), "--residual", str(config.residual), "--backend", config.backend,
        "--recall-form", config.recall_form, "--no-fallback", "--seed", str(config.seed),
    ]  # fmt: skip


def _is_of(record: Record, config: EvalConfig) -> bool:
    c = record.config
    named = c["backend"] not in FAULTS if config.backend == "auto" else c["backend"] == config.backend
    return named and (
        c["device"], c["context"], c["bits"], c["windows"], c["page_size"], c["decode_tokens"], c["seed"],
    ) == (
        config.device, config.context[0], config.bits[0], config.windows, config.page_size, config.decode_tokens,
        config.seed,
    )  # fmt: skip
