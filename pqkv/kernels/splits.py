"""A decoding step with a given number of splits of the context, for the backends that cut it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_inputs, check_lengths
from pqkv.kernels.types import ExactTokens, PagedTokens


@dataclass(frozen=True, slots=True)
class SplitStep:
    """`splits` of the pages that the step takes in fact; `run` does it and returns what the backend does."""

    splits: int
    run: Callable[[], tuple[Tensor, Tensor]]


def split_step(
    backend: str,
    query: Tensor,
    pages: PagedTokens,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
    splits: int | None = None,
) -> SplitStep:
    """The step of this backend on arguments of an `AttentionBackend` with `splits` (None: as it chooses by itself),
    or the nearest number that its kernel can do: codes on a GPU have to fit their scores into shared memory. Raises
    `KernelError` for a backend that takes no number of splits, a number below 1, inputs that do not fit together, and
    what the kernels leave to torch.
    """
    if splits is not None and splits < 1:
        raise KernelError(f"{splits} splits: at least one is needed")
    given = query, pages, sinks, residual
    check_inputs(*given, window)
    check_lengths(pages, sinks, residual)
    if backend == "cpu":
        from pqkv.kernels.cpu.decode import decode, step_of

        how: dict[str, Any] = {"scale": scale, "window": window, "stretches": splits}
        return SplitStep(step_of(*given, **how).stretches, partial(decode, *given, **how))
    if backend == "cuda":
        from pqkv.kernels.cuda.backend import Step, obstacle

        if reason := obstacle(query, pages):
            raise KernelError(f"backend 'cuda' leaves this case to torch, which takes no number of splits: {reason}")

        def step() -> Step:
            return Step(*given, scale, window or 0, splits)

        return SplitStep(sum(count for count, _ in step().page_plans()), lambda: step().run())
    raise KernelError(f"backend '{backend}' takes no number of splits; use cpu or cuda")
