"""How long a step takes on the CPU when the pages of a sequence are cut into so many units of work."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pqkv.config import BenchConfig
from pqkv.errors import KernelError
from pqkv.kernels import ChosenBackend
from pqkv.record import Record, RecordStore
from pqkv.speed.bench import Cell, Report, metric_of, run_grid
from pqkv.speed.synthetic import DecodeInputs, decode_inputs
from pqkv.speed.timing import Contestant, copies_beyond_cache, race

OWN_CHOICE = "as the backend chooses"


def stretch_grid(
    config: BenchConfig,
    counts: Sequence[int],
    store: RecordStore | None = None,
    *,
    force: bool = False,
    report: Report | None = None,
) -> Iterator[Record]:
    """A record for every cell of the grid, mode "splits", with rows of splits and median_ms in `tables["splits"]`: one
    for every count that leaves each unit a page, and one (`chosen`) for what backend `cpu` takes by itself.
    """
    mode = f"splits {','.join(map(str, counts))}"
    return run_grid(config, functools.partial(_measure, counts), store, force=force, report=report, mode=mode)


def _measure(
    counts: Sequence[int], config: BenchConfig, cell: Cell, backend: ChosenBackend, device: torch.device,
    bandwidth: Callable[[], float],
) -> dict[str, Any]:  # fmt: skip
    if backend.name != "cpu":
        raise KernelError(f"backend '{backend.name}' takes no number of splits; use cpu")
    from pqkv.kernels.cpu.decode import step_of

    scale = config.head_dim**-0.5
    first = decode_inputs(config, cell.context, cell.batch, cell.shape, config.seed)
    copies = copies_beyond_cache(first.read)
    inputs = [first] + [
        decode_inputs(config, cell.context, cell.batch, cell.shape, config.seed + i) for i in range(1, copies)
    ]
    pages = int(first.pages.context_len.max()) // config.page_size

    def call(case: DecodeInputs, stretches: int | None) -> Callable[[], object]:
        def run() -> object:
            step = step_of(case.query, case.pages, case.sinks, case.residual, scale=scale, stretches=stretches)
            step.attend_pages()
            return step.merge()

        return run

    wanted: dict[str, int | None] = {str(count): count for count in counts if count <= max(1, pages)}
    wanted[OWN_CHOICE] = None
    contestants = [Contestant(name, [call(case, count) for case in inputs]) for name, count in wanted.items()]
    timings = race(contestants, config.repeats, always=list(wanted))
    chosen = step_of(first.query, first.pages, first.sinks, first.residual, scale=scale).stretches
    rows = [
        {
            "splits": chosen if count is None else count, "chosen": count is None, "median_ms": timings[name].median,
            "q10_ms": timings[name].quantile(0.1), "q90_ms": timings[name].quantile(0.9),
        }
        for name, count in wanted.items()
    ]  # fmt: skip
    samples = {name: [1e3 * s for s in timing.seconds] for name, timing in timings.items()}
    own = timings[OWN_CHOICE]
    return {
        "metrics": {"latency_ms": metric_of(own.median, samples[OWN_CHOICE], "ms")},
        "tables": {"splits": rows},
        "samples": samples,
    }
