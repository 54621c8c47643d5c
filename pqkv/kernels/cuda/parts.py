"""The parts of a decoding step on a GPU: its launches one by one, and `coded_kernel` ended after each of its phases.

What a phase costs is the time of the kernel that ends after it less that of the one that ends before it. The two differ
in registers too, and so in how many blocks run at a time: differences say where the time goes, not to the microsecond.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_inputs
from pqkv.kernels.cuda.backend import Plan, Step, obstacle
from pqkv.kernels.cuda.coded import Phase
from pqkv.kernels.types import ExactTokens, PagedTokens, Part


def decode_parts(
    query: Tensor,
    pages: PagedTokens,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
) -> list[Part]:
    """The parts of backend `cuda` on these arguments, in order; the last returns what the whole does. Raises
    `KernelError` for what torch computes instead.
    """
    check_inputs(query, pages, sinks, residual, window)
    if reason := obstacle(query, pages):
        raise KernelError(f"backend 'cuda' leaves this case to torch, so it has no parts: {reason}")

    def arguments() -> Step:
        return Step(query, pages, sinks, residual, scale, window or 0)

    step = arguments()
    exact, paged = step.exact_plans(), step.page_plans()
    first, slots = _slots(exact), _slots(exact) + _slots(paged)
    partial = step.partial(slots)

    def launching(plans: list[Plan], at: int) -> Callable[[], object]:
        return lambda: step.start(plans, partial, at, slots)

    parts = [Part("arguments", arguments)]
    fast = step.fast(pages) if paged and pages.keys.centroids is not None else None
    if fast is not None:
        tables = "key centroids" if fast.decodes else "key tables"
        phases: tuple[tuple[str, Phase, str | None], ...] = (
            (tables, "tables", None), ("scores", "scores", tables), ("softmax", "softmax", "scores"),
            ("values", "values", "softmax"),
        )  # fmt: skip
        parts += [Part(name, launching(step.page_plans(last), first), beyond) for name, last, beyond in phases]
    elif paged:
        parts.append(Part("exact pages" if pages.keys.centroids is None else "plain kernel", launching(paged, first)))
    if exact:
        parts.append(Part("exact part", launching(exact, 0)))
    return [*parts, Part("merge", lambda: step.merge(partial, slots))]


def _slots(plans: list[Plan]) -> int:
    return sum(splits for splits, _ in plans)
