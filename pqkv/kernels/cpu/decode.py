"""One query per sequence on the CPU: from tensors to the addresses and numbers that one compiled call takes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, NoReturn, Required, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from pqkv.errors import KernelError
from pqkv.kernels.checks import check_inputs, check_lengths
from pqkv.kernels.cpu.byte_lookups.attend import VALUES
from pqkv.kernels.cpu.exact_form import BFLOAT16, FLOAT32
from pqkv.kernels.cpu.held import NO_TURNS, NOTHING, Bound, Held, Tables, hold, recall
from pqkv.kernels.cpu.sides import Array, Way
from pqkv.kernels.cpu.step import DONE, NO_MEMORY, NO_ROOM, RESIDUAL, SINKS, Now, begin_step, take_step, work
from pqkv.kernels.types import ExactTokens, PagedTokens
from pqkv.parallel import openmp
from pqkv.workers import share

_STRETCH = 8192  # tokens of one unit of work: their scores stay in the second-level cache, tables come often from it
_SHORTEST = 256  # a unit this short pays for being handed to a thread
_SERVED = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}  # queries that kernels take as they are
_LOG2_E = math.log2(math.e)

Number = int | float


class How(TypedDict, total=False):
    """How a step is taken: what an `AttentionBackend` is told, and what the backends of the CPU differ in."""

    scale: Required[float]
    window: int | None
    ways: tuple[Way, Way]  # force what codes of keys and of values look up
    rounded: bool  # centroids of floats as bytes, where those are looked up
    planes: int  # bytes that numbers of queries and weights are of there, 1 or 2
    stretches: int | None  # units of work that the pages of a sequence are cut into, None to choose
    held: Held | None  # what was made of the same tensors before


class _Begun(NamedTuple):
    """A step before its compiled call: what `begin_step` takes, the tables of turns, and what has to live as long as
    the addresses are used.
    """

    held: Held
    numbers: tuple[Number, ...]
    tables: Tables
    alive: tuple[object, ...]
    out: Tensor
    lse: Tensor


def _begin(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    *,
    scale: float,
    window: int | None = None,
    ways: tuple[Way, Way] = ("auto", "auto"),
    stretches: int | None = None,
    rounded: bool = False,
    planes: int = 2,
    held: Held | None = None,
) -> _Begun:
    """In one piece: with no cache warm, each function that is called and each object costs some microseconds."""
    if held is None:
        given = query, pages, sinks, residual, ways, rounded, planes
        held = recall(*given) or hold(*given)
    dtype = query.dtype
    if query.shape[1] != 1:
        raise KernelError(f"a step has one query a sequence, not {query.shape[1]}")
    own = query if dtype in _SERVED and query.is_contiguous() else _floats(query)
    out, lse = torch.empty_like(own), torch.empty_like(held.lse)  # in half of the time that a shape and dtype take
    tables, meets, phasors, pairs = NO_TURNS, None, None, 0
    table = paged = None
    ids = width = 0
    if pages is not None:
        paged, table = pages.context_len, pages.page_table.contiguous()
        ids, width = table.data_ptr(), table.shape[1]
        if table.dtype != torch.int32 or not table.is_cpu or table.shape[0] != held.batch[0]:
            _refuse(query, pages, sinks, residual, window)
        if pages.query is not None:
            meets = _floats(pages.query.query)
            if pages.query.frequencies:
                tables, phasors = held.turning(pages.query, pages)
                pairs = len(pages.query.frequencies)
    lengths, alive = [], [own, table, meets, phasors]
    for length in (None if sinks is None else sinks.length, paged, None if residual is None else residual.length):
        if length is None:
            lengths.append(0)
            continue
        if length.dtype != torch.int32 or length.shape != held.batch or not length.is_cpu:
            _refuse(query, pages, sinks, residual, window)
        in_a_row = length.contiguous()
        lengths.append(in_a_row.data_ptr())
        alive.append(in_a_row)
    if window is not None and window < 1:
        _refuse(query, pages, sinks, residual, window)
    numbers = (
        torch.get_num_threads(), _STRETCH, _SHORTEST, -1 if stretches is None or pages is None else stretches,
        window or 0, scale * _LOG2_E, *held.numbers, _SERVED[own.dtype],
        own.data_ptr(), 0 if meets is None else meets.data_ptr(), 0 if phasors is None else phasors.data_ptr(), pairs,
        ids, width, *lengths, out.data_ptr(), lse.data_ptr(),
    )  # fmt: skip
    return _Begun(held, numbers, tables, tuple(alive), out, lse)


def _floats(tensor: Tensor) -> Tensor:
    """As float32, one number after another: mostly the tensor itself."""
    if tensor.dtype == torch.float32 and tensor.is_contiguous():
        return tensor
    return tensor.detach().float().contiguous()


def _refuse(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    window: int | None = None,
) -> NoReturn:
    """Raise `KernelError` for what is wrong with tokens that are not those that a step was held for."""
    check_inputs(query, pages, sinks, residual, window)
    check_lengths(pages, sinks, residual)
    raise KernelError("lengths changed while they were read")


def decode(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    **how: Unpack[How],
) -> tuple[Tensor, Tensor]:
    """`AttentionBackend` for Tq = 1; returns out in the query's dtype and lse in float64.

    Of what changes from step to step, the lengths are checked: their type, and that there is room for as many tokens.
    """
    begun = _begin(query, pages, sinks, residual, **how)
    held, out = begun.held, begun.out
    if not _take(begun, NOTHING if pages is None else held.page_call(begun.tables), held.exact_call):
        _refuse(query, pages, sinks, residual)
    return out if out.dtype == query.dtype else out.to(query.dtype), begun.lse


def without_attention(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    **how: Unpack[How],
) -> None:
    """All that `decode` does but attention: what a step costs apart from its tokens."""
    if not _take(_begin(query, pages, sinks, residual, **how), NOTHING, NOTHING):
        _refuse(query, pages, sinks, residual)


def _take(begun: _Begun, pages: Bound, exact: Bound) -> bool:
    """Whether there is room for what lengths say, and the step was taken. Its addresses are those of what `begun`
    keeps.
    """
    numbers = begun.numbers
    calls, launch = (pages.call, pages.place, exact.call, exact.place), openmp()
    if launch or torch.get_num_threads() == 1:
        end = take_step(launch, *calls, *numbers)
    else:
        end = _take_on_python_threads(calls, numbers)
    if end == NO_MEMORY:
        raise MemoryError("attention found no memory to work in")
    return bool(end == DONE)


def _take_on_python_threads(calls: tuple[int, int, int, int], numbers: tuple[Number, ...]) -> int:
    """`take_step` where OpenMP's threads cannot be had."""
    now, fits, pays = begin_step(*numbers)
    if not fits:
        return NO_ROOM
    failed = []

    def run() -> None:
        if work(0, 1, *calls, now):
            failed.append(True)

    share(run, torch.get_num_threads() - 1 if pays else 0)
    return NO_MEMORY if failed else DONE


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step whose parts can be run one by one."""

    begun: _Begun
    now: Now
    pays: bool  # more than one thread

    @property
    def held(self) -> Held:
        """What kernels take that stays."""
        return self.begun.held

    @property
    def stretches(self) -> int:
        """Units of work of a sequence and KV head."""
        return self.now.stretches

    @property
    def units(self) -> int:
        """Units of work of all sequences and KV heads in pages."""
        return len(self.now.query) * self.held.kv_heads * self.stretches

    @property
    def work(self) -> float:
        """About how many microseconds attention on pages takes on one thread."""
        return self.units * self.now.stretch * self.held.token_work

    @property
    def turning(self) -> tuple[Array, float, Array, Array, Array]:
        """Phasors, what scales them, and the tables of `pqkv.kernels.turns`."""
        return self.now.phasors, self.now.phasor_scale, *self.begun.tables

    def attend_pages(self, phases: int = VALUES) -> None:
        """Partial results of all stretches; look-ups in byte tables end after a phase (`bind_bytes`)."""
        if self.held.pages is not None and self.stretches:
            self._run(self.held.page_call(self.begun.tables, phases), NOTHING, self.now.left + 1)

    def merge(self) -> tuple[np.ndarray, np.ndarray]:
        """Sinks, residual and the stretches together: (B, Hq, D) float32, and lse (B, Hq) float64."""
        self._run(NOTHING, self.held.exact_call, np.ones_like(self.now.left))
        return self.now.result, self.now.lse

    def _run(self, pages: Bound, exact: Bound, left: np.ndarray) -> None:
        now = self.now._replace(taken=np.zeros(2, np.int64), left=left)
        threads = torch.get_num_threads() if self.pays and openmp() else 1
        if work(openmp(), threads, pages.call, pages.place, exact.call, exact.place, now):
            raise MemoryError("attention found no memory to work in")

    def without_pages(self) -> Step:
        """The same step with nothing but sinks and residual to merge, and results of its own."""
        out, top, total = (
            np.ascontiguousarray(part[:, :, -1:]) for part in (self.now.out, self.now.top, self.now.total)
        )
        result, lse = np.empty_like(self.now.result), np.empty_like(self.now.lse)
        return replace(self, now=self.now._replace(out=out, top=top, total=total, result=result, lse=lse))

    def without_exact_parts(self) -> Step:
        """The same step with nothing but the stretches to merge."""
        lengths = self.now.lengths.copy()
        lengths[[SINKS, RESIDUAL]] = 0
        return replace(self, now=self.now._replace(lengths=lengths, starts=np.minimum(self.now.starts, lengths)))


def step_of(
    query: Tensor,
    pages: PagedTokens | None,
    sinks: ExactTokens | None,
    residual: ExactTokens | None,
    **how: Unpack[How],
) -> Step:
    """The step that `decode` takes on these arguments, begun and not taken."""
    begun = _begin(query, pages, sinks, residual, **how)
    now, fits, pays = begin_step(*begun.numbers)
    if not fits:
        _refuse(query, pages, sinks, residual)
    return Step(begun, now, pays)
