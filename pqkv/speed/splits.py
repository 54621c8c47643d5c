"""How long a decoding step takes when the pages of a sequence are cut into so many splits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from pqkv.config import BenchConfig
from pqkv.errors import KernelError
from pqkv.kernels import ChosenBackend
from pqkv.kernels.splits import SplitStep, split_step
from pqkv.record import Record, RecordStore
from pqkv.speed.bench import Cell, Report, metric_of, run_grid
from pqkv.speed.check import TOLERANCE, relative_error
from pqkv.speed.synthetic import DecodeInputs, decode_inputs
from pqkv.speed.timing import Contestant, copies_beyond_cache, race

OWN_CHOICE = "as the backend chooses"


def split_grid(
    config: BenchConfig,
    counts: Sequence[int],
    store: RecordStore | None = None,
    *,
    force: bool = False,
    report: Report | None = None,
    name: str = "splits",
) -> Iterator[Record]:
    """A record for every cell of the grid, mode `name`, with rows in `tables["splits"]`: one for every count that
    leaves each split a page (`asked`), and one (`chosen`) for what the backend takes by itself. `splits` is what the
    kernel takes in fact (see `split_step`); counts that come to the same are run once. The backend's own choice is held
    to the reference, and each count to that, before anything is timed.
    """
    mode = f"{name} {','.join(map(str, counts))}"
    return run_grid(config, functools.partial(_measure, counts), store, force=force, report=report, mode=mode)


def _measure(
    counts: Sequence[int], config: BenchConfig, cell: Cell, backend: ChosenBackend, device: torch.device,
    bandwidth: Callable[[], float],
) -> dict[str, Any]:  # fmt: skip
    scale = config.head_dim**-0.5

    def inputs_of(seed: int) -> DecodeInputs:
        return decode_inputs(config, cell.context, cell.batch, cell.shape, seed, device)

    first = inputs_of(config.seed)
    inputs = [first] + [inputs_of(config.seed + i) for i in range(1, copies_beyond_cache(first.read, device))]
    error, limit = relative_error(backend.run, first, scale, config.window), TOLERANCE[first.query.dtype]
    if not error <= limit:
        raise KernelError(f"wrong result: relative error {error:.1e} is above {limit:.0e}, so nothing was timed")

    def step_of(case: DecodeInputs, splits: int | None) -> SplitStep:
        given = case.query, case.pages, case.sinks, case.residual
        return split_step(backend.name, *given, scale=scale, window=config.window, splits=splits)

    pages = int(first.pages.context_len.max()) // config.page_size
    own, _ = step_of(first, None).run()
    wanted: dict[int, int] = {}  # from the number of splits that the kernel takes to the one that it is asked for
    for count in sorted(counts):
        if count <= max(1, pages):
            step = step_of(first, count)
            wanted[step.splits] = count
            gap = (step.run()[0].double() - own.double()).norm(dim=-1) / own.double().norm(dim=-1)
            if not gap.max() <= limit:
                raise KernelError(
                    f"wrong result: {count} splits deviate by {gap.max():.1e} from what the backend chooses, above "
                    f"{limit:.0e}, so nothing was timed"
                )
    contestants = [Contestant(str(n), [step_of(c, count).run for c in inputs]) for n, count in wanted.items()]
    contestants.append(Contestant(OWN_CHOICE, [step_of(c, None).run for c in inputs]))
    timings = race(contestants, config.repeats, always=[c.name for c in contestants], device=device)
    rows = [
        {
            "splits": step_of(first, None).splits if name == OWN_CHOICE else int(name), "chosen": name == OWN_CHOICE,
            "asked": None if name == OWN_CHOICE else wanted[int(name)],
            "median_ms": timing.median, "q10_ms": timing.quantile(0.1), "q90_ms": timing.quantile(0.9),
        }
        for name, timing in timings.items()
    ]  # fmt: skip
    samples = {name: [1e3 * s for s in timing.seconds] for name, timing in timings.items()}
    return {
        "metrics": {"latency_ms": metric_of(timings[OWN_CHOICE].median, samples[OWN_CHOICE], "ms")},
        "tables": {"splits": rows},
        "samples": samples,
    }
