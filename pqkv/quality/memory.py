"""Memory that a job takes beside the weights, from shapes alone: what is alive at once in each of its stages.

Tensors that are not large beside these are left out; what libraries take for themselves is one figure. So an estimate
says what to expect, within half as much again, and is no bound.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from pqkv.cache import footprint
from pqkv.config import STEPWISE, EvalConfig
from pqkv.lm import LanguageModel
from pqkv.lm.layers import layer_plan
from pqkv.quality.batches import FORWARD_TOKENS, WINDOWS_TOGETHER, windows_together
from pqkv.quality.cells import Cell
from pqkv.quality.exact_states import KEPT_BYTES
from pqkv.quality.measures import tile_bytes
from pqkv.quality.noise_floor import Floor
from pqkv.quality.schedule import TILE_ROWS

_log = logging.getLogger("pqkv")

_FLOAT, _BOOL = 4, 1  # bytes: codes are looked up and measures made in float32
_LIBRARIES = 384 << 20  # compilers and compiled kernels, threads' buffers, what the allocator does not give back


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by stage: a job keeps the `exact_states` of its windows and its `copies` of the weights throughout and is
    in one of the others.
    """

    exact_states: int
    exact_forward: int
    coded_run: int
    comparison: int
    libraries: int = _LIBRARIES
    copies: int = 0

    @property
    def peak(self) -> int:
        """Bytes beside the weights when most are alive."""
        stage = max(self.exact_forward, self.coded_run, self.comparison)
        return self.exact_states + self.copies + stage + self.libraries


@dataclass(frozen=True, slots=True)
class _Shapes:
    """What the terms are made of."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    coded: int
    sliding: int  # layers that keep transformers' own cache, and
    window: int  # the columns such a layer keeps
    itemsize: int

    @classmethod
    def of(cls, lm: LanguageModel) -> _Shapes:
        text = lm.model.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr] # transformers' own
        windows = [more["sliding_window"] for more in layer_plan(lm.model.config).settings if "sliding_window" in more]
        return cls(
            lm.hidden_size, text.intermediate_size, lm.num_heads, lm.num_kv_heads, lm.head_dim, len(lm.coded_layers),
            lm.num_layers - len(lm.coded_layers), max(windows, default=0), _itemsize(lm),
        )  # fmt: skip

    def states(self, tokens: int) -> int:
        return tokens * self.hidden * self.itemsize

    def heads_of(self, tokens: int, heads: int) -> int:
        return tokens * heads * self.head_dim * self.itemsize


def estimate(
    lm: LanguageModel, config: EvalConfig, cell: Cell, windows: int, *, most: int = WINDOWS_TOGETHER
) -> Estimate:
    """Bytes that a cell of `windows` windows takes beside the weights, at most `most` of them at once."""
    shapes, T = _Shapes.of(lm), cell.context
    B = min(windows, windows_together(lm, T, stepwise=cell.mode in STEPWISE, most=most))
    scored = config.decode_tokens if cell.mode == "decode" else T
    at_once = min(B, max(1, FORWARD_TOKENS // T))
    states = shapes.states(B * scored)
    kept = max(states, min(KEPT_BYTES, shapes.states(windows * scored)))
    tile = tile_bytes(lm.vocab_size, scored, lm.dtype)  # windows are compared one by one
    return Estimate(
        exact_states=kept,
        exact_forward=_forward(shapes, at_once, T, T),
        coded_run=states + _coded_run(shapes, config, cell, B),
        comparison=states + tile,
    )


def estimate_floor(lm: LanguageModel, floor: Floor, context: int, windows: int) -> Estimate:
    """Bytes that a noise floor takes beside the weights, whose kept exact states are those of the cells before it."""
    shapes, T = _Shapes.of(lm), context
    B = min(windows, max(1, FORWARD_TOKENS // T))
    kept = min(KEPT_BYTES, shapes.states(windows * T))
    if floor.kind == "cache":
        states = shapes.states(B * T)
        rounded = 2 * shapes.heads_of(B * T, shapes.kv_heads)  # keys and values of the layer that is attended to
        return Estimate(
            exact_states=max(states, kept),
            exact_forward=_forward(shapes, B, T, T),
            coded_run=states + _forward(shapes, B, T, T) + rounded + _sliding(shapes, B, T),
            comparison=states + tile_bytes(lm.vocab_size, T, lm.dtype),
        )
    narrow = replace(shapes, itemsize=torch.empty((), dtype=getattr(torch, floor.dtype)).element_size())
    wide = replace(shapes, itemsize=_FLOAT)
    weights = sum(weight.numel() for weight in lm.model.parameters())
    states = wide.states(B * T)
    return Estimate(
        exact_states=kept,
        exact_forward=_forward(wide, B, T, T),
        coded_run=states + _forward(narrow, B, T, T),
        comparison=states + narrow.states(B * T) + tile_bytes(lm.vocab_size, T),
        copies=weights * max(shapes.itemsize, narrow.itemsize + _FLOAT),  # both models, or the one they are made of
    )


class MemoryWatch:
    """The memory of a job as it is expected and as the process peaked; warns at once where it is not expected to fit,
    as a record's `notes` are read when it is too late.
    """

    def __init__(self, expected: Estimate, label: str) -> None:
        self._before = peak_resident()
        self.notes: list[str] = []
        if short := shortage(expected, label):
            _log.warning(short)
            self.notes.append(short)

    def row(self, expected: Estimate) -> dict[str, int | None]:
        """What a record says of it, now that the job is done."""
        return memory_row(expected, self._before, peak_resident())


def memory_row(estimate: Estimate, before: int | None, after: int | None) -> dict[str, int | None]:
    """A row for a record: the terms, their peak, and by how much the process's own peak of resident memory grew from
    `before` the cell to `after` it: 0 where it had peaked higher before, None where the platform does not tell.
    """
    grown = None if before is None or after is None else after - before
    return {**asdict(estimate), "estimated_peak": estimate.peak, "peak_rss_growth": grown}


def shortage(estimate: Estimate, label: str) -> str | None:
    """One line where a cell is expected to take more memory than is available; None where it is not, or not known."""
    free = available_memory()
    if free is None or estimate.peak <= free:
        return None
    return (
        f"{label}: about {estimate.peak / 1e9:.1f} GB beside the weights are expected and {free / 1e9:.1f} GB are "
        "available; fewer tokens (--context), --dtype bfloat16 or another machine would do"
    )


def available_memory() -> int | None:
    """Bytes that this machine can still give; None where it does not tell."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def peak_resident() -> int | None:
    """The most bytes that this process has had in memory so far, or since the peak was reset; None where the platform
    does not tell. Linux counts what the parent had into `ru_maxrss`, so its own account comes first.
    """
    with suppress(OSError, StopIteration, ValueError), Path("/proc/self/status").open(encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _forward(shapes: _Shapes, batch: int, new: int, columns: int) -> int:
    """One layer of a forward of `new` tokens a window on as many `columns`: the stream beside its MLP or attention."""
    N = batch * new
    stream = 4 * shapes.states(N)  # residual, its norm, what the layer adds, the sum
    mlp = 3 * N * shapes.intermediate * shapes.itemsize  # gate, up, their product
    attention = shapes.heads_of(N, 4 * shapes.heads + 4 * shapes.kv_heads)  # queries, rotated, output; keys, values
    masks = 0
    if shapes.window and columns > shapes.window:  # written out, as torch adds it to scores and as it was made
        masks = batch * new * columns * (2 * _BOOL + shapes.itemsize)
    return stream + max(mlp, attention + masks)


def _coded_run(shapes: _Shapes, config: EvalConfig, cell: Cell, batch: int) -> int:
    """What a run through codes holds beside its states."""
    T = cell.context
    if cell.mode not in STEPWISE:
        return _forward(shapes, batch, T, T) + _schedule(shapes, config, cell, batch) + _sliding(shapes, batch, T)
    new = {"token": 1, "chunk": min(T, config.chunk_size), "decode": T - config.decode_tokens}[cell.mode]
    cache = batch * _cache(shapes, config, cell)
    growth = cache // 4  # pages move when their pool grows by a quarter
    own = _sliding(shapes, batch, min(T, max(new, shapes.window)))
    return cache + growth + own + _forward(shapes, batch, new, T)


def _cache(shapes: _Shapes, config: EvalConfig, cell: Cell) -> int:
    """One sequence in the cache that the cell is about; codebooks that are not trained yet have no bytes but bits."""
    coding, arguments = cell.coding, (shapes.coded, shapes.kv_heads, shapes.head_dim, shapes.itemsize)
    if coding.books is not None or not coding.bits:
        return footprint(cell.context, config.cache(), *arguments, coding.books).total
    exact = footprint(min(cell.context, config.sink_tokens + config.residual), config.cache(), *arguments, None).total
    return exact + int(2 * shapes.coded * cell.context * shapes.kv_heads * shapes.head_dim * coding.bits / 8)


def _schedule(shapes: _Shapes, config: EvalConfig, cell: Cell, batch: int) -> int:
    """Attention of one layer where the columns a row sees change from codes to exact ones, in float32."""
    T = cell.context
    side = 2 * batch * T * shapes.kv_heads * shapes.head_dim * _FLOAT  # keys and values
    copies = 4 * side  # exact in float32, in the order of the codes, decoded, as a row sees them
    rows = max(config.page_size, config.sink_tokens + config.residual) if cell.mode == "exact-schedule" else T
    seen = min(rows, TILE_ROWS, T) * T
    return copies + shapes.heads // shapes.kv_heads * seen * (
        _BOOL + _FLOAT
    )  # the mask, and as torch adds it to scores


def _sliding(shapes: _Shapes, batch: int, columns: int) -> int:
    """Keys and values that the layers which are not coded keep; after one forward all it had."""
    return shapes.sliding * shapes.heads_of(2 * batch * columns, shapes.kv_heads)


def _itemsize(lm: LanguageModel) -> int:
    return torch.empty((), dtype=lm.dtype).element_size()
