"""The stages of a decoding step on the CPU, each alone over the whole cache: what each of them costs.

The kernel of `bind_coded` takes a stretch of tokens through all stages at once. Here one stage goes over all stretches,
with the same code on the same threads, and hands its results to the next in arrays. What lies in these arrays would
have stayed in a core's own cache, so the parts may add up to more than the whole; `pqkv.speed.breakdown` shows both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from torch import Tensor

from pqkv.kernels.cpu.byte_lookups.attend import SCORES, VALUES, WEIGHTS
from pqkv.kernels.cpu.coded import TABLE, scores_size
from pqkv.kernels.cpu.decode import How, Step, step_of, without_attention
from pqkv.kernels.cpu.sides import Way
from pqkv.kernels.cpu.stages import look_up_all, mix_all, prepare_all, soften_all
from pqkv.kernels.cpu.step import PAGES
from pqkv.kernels.types import ExactTokens, PagedTokens, Part
from pqkv.parallel import run_units


def decode_parts(
    query: Tensor,
    pages: PagedTokens,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
    ways: tuple[Way, Way] = ("auto", "auto"),
    rounded: bool = False,
    planes: int = 2,
) -> list[Part]:
    """The parts of `decode` on these arguments, in order; each takes what the one before it left, so they are run in
    turns. They leave the result of the whole in the arrays that the last part returns.
    """

    given: How = {"scale": scale, "window": window, "ways": ways, "rounded": rounded, "planes": planes}
    step = step_of(query, pages, sinks, residual, **given)
    parts = [Part("arguments", partial(without_attention, query, pages, sinks, residual, **given))]
    if not step.stretches:
        pass
    elif pages.keys.centroids is None:
        parts.append(Part("exact pages", step.attend_pages))
    elif step.held.by_bytes:
        parts += _byte_parts(step)
    else:
        parts += _coded_parts(step, pages)
    if sinks is not None or residual is not None:
        parts.append(Part("exact part", step.without_pages().merge))
    return [*parts, Part("merge", step.without_exact_parts().merge)]


def _byte_parts(step: Step) -> list[Part]:
    """Look-ups in byte tables end after a phase: the others' own times are differences. Scores ask memory for the first
    values too.
    """
    names = {SCORES: "scores", WEIGHTS: "softmax", VALUES: "values"}
    return [Part(name, partial(step.attend_pages, phase), beyond=names.get(phase - 1)) for phase, name in names.items()]


def _coded_parts(step: Step, pages: PagedTokens) -> list[Part]:
    held = step.held
    keys, values = held.coded_sides
    heads, unit = held.tags
    now, page_size = step.now, pages.page_size
    places = now.lengths[PAGES], now.starts[PAGES], now.table, held.kv_heads, page_size, now.stretch // page_size
    M, C, d_sub = keys.centroids.shape[1:]
    by_table = len(keys.way) == TABLE
    prepared = np.empty((step.units, M * held.group * (C if by_table else d_sub)), np.float32)
    scores = np.empty((step.units, scores_size(now.stretch, heads, unit)), np.float32)

    def call(kernel: Callable[..., bool], *arguments: object) -> Callable[[], object]:
        return lambda: run_units(kernel, step.units, step.work / 4, *places, step.stretches, *arguments)

    return [
        Part("key tables" if by_table else "query", call(prepare_all, *keys, now.coded_query, prepared, heads)),
        Part("scores", call(look_up_all, *keys, prepared, *step.turning, scores, heads, unit)),
        Part("softmax", call(soften_all, scores, now.top, now.total, heads, unit)),
        Part("values", call(mix_all, *values, *held.gains, scores, now.out, heads, unit)),
    ]
