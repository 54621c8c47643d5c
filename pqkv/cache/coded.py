"""One layer of a coded cache: exact sinks, coded pages, exact residual window."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pqkv.cache.layer import (
    AttentionObserver,
    Geometry,
    checked_crop,
    checked_finite,
    checked_padding,
    length_tensor,
    length_tensors,
)
from pqkv.cache.store import CodeStore
from pqkv.cache.turns import CodedQueries, ValueTurn
from pqkv.cache.window import Window, check_window_after_crop
from pqkv.config import CacheConfig
from pqkv.errors import CacheError
from pqkv.kernels import AttentionBackend, ExactTokens, Kept, slot_writer
from pqkv.kernels.cpu.slots import SlotWriter
from pqkv.schedule import coded_len


class _Staged(NamedTuple):
    """Keys and values (B, Hkv, capacity, D) of the residual with the new tokens behind it, and how many tokens of each
    sequence there are then, and coded.
    """

    keys: Tensor
    values: Tensor
    lengths: list[int]
    coded: list[int]


class CodedLayer:
    """Keys and values of one layer for a batch of sequences of `lengths[b]` tokens: the first min(n, S) are sinks,
    the next `coded[b]` lie in sealed pages, the rest is the residual. `coded[b]` is `coded_len(n)`, or what it was
    before a `crop` took tokens back: sealed pages are not opened again. Keys and values must be finite, which is seen
    when they come, or of single tokens on a GPU when their page is sealed.

    Codes of keys may meet a query of their own, made by `queries`; values may lie turned, by `turn`: see
    `pqkv.cache.turns`. Under a window pages that no later query sees are never coded, and `advanced` is called when
    pages fell behind it: their owner gives them back.
    """

    observer: AttentionObserver | None = None

    def __init__(
        self,
        store: CodeStore,
        config: CacheConfig,
        geometry: Geometry,
        backend: AttentionBackend,
        queries: CodedQueries | None = None,
        turn: ValueTurn | None = None,
        advanced: Callable[[], None] | None = None,
    ) -> None:
        self.store, self.config, self.geometry, self.backend = store, config, geometry, backend
        self.queries, self.turn, self._advanced = queries, turn, advanced
        self.window = Window.of(config.window, config.window_sinks)
        # asking a GPU whether a token is finite is waiting for it, in every layer and step: asked when a page is sealed
        self.checks_late = geometry.device.type != "cpu"
        self.lengths = [0] * geometry.num_sequences
        self.coded = [0] * geometry.num_sequences
        self._sinks = self._buffers(config.sink_tokens)
        self._residual = self._buffers(config.residual)
        self._writer: SlotWriter | None = None  # of these buffers
        self._kept = Kept()  # of backends, while there are no pages

    def append(self, keys: Tensor, values: Tensor, padding: Sequence[int] | None = None) -> None:
        """Add tokens (B, Hkv, T, D), of which the first `padding[b]` of sequence b are not real.

        Raises `OutOfPages` before anything changes.
        """
        self._commit(self._stage(keys, values, checked_padding(padding, keys, len(self.lengths))))

    def attend(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        *,
        scale: float,
        padding: Sequence[int] | None = None,
        window: int | None = None,
    ) -> Tensor:
        """Attention of query (B, T, Hq, D) over what is cached and the new tokens (causally), which are then added.

        Returns (B, T, Hq, D). Every query sees as coded what was coded before this step. The observer sees attention as
        the backend does, values turned.
        """
        before, own = self.coded, self.window
        firsts = None if own is None else self.first_pages()
        staged = self._stage(keys, values, checked_padding(padding, keys, len(self.lengths)))
        lengths, most = staged.lengths, self.config.sink_tokens
        sinks = [min(n, most) for n in lengths]
        exact = [n - s - c for n, s, c in zip(lengths, sinks, before, strict=True)]
        seen, gone = before, None
        if firsts is not None:
            gone = [first * self.config.page_size for first in firsts]
            seen = [coded - skipped for coded, skipped in zip(before, gone, strict=True)]
        # in the order in which kernels read them, so that nobody has to put them together
        in_sinks, in_pages, in_residual = length_tensors((sinks, seen, exact), keys.device)
        pages = self.store.tokens(in_pages, firsts) if any(seen) else None
        if pages is not None and self.queries is not None:
            pages = pages.meeting(self.queries(query, gone))
        kept = self._kept if staged.keys is self._residual[0] else Kept()
        inputs = (
            pages,
            ExactTokens(self._sinks[0], self._sinks[1], in_sinks) if most else None,
            ExactTokens(staged.keys, staged.values, in_residual, kept),
        )
        window = own.size if own is not None else window
        out, lse = self.backend(query, *inputs, scale=scale, window=window)
        if self.observer is not None:
            self.observer(query, *inputs, scale=scale, window=window, out=out, lse=lse)
        if own is not None:
            out = own.beside(query, (self._sinks[0], self._sinks[1]), lengths, out, lse, scale=scale)
        self._commit(staged)
        return out if self.turn is None else self.turn.undo(out, self.geometry.num_kv_heads)

    def select(self, sequences: Sequence[int]) -> None:
        """Make sequence i what sequences[i] was."""
        index = torch.tensor(list(sequences), device=self._residual[0].device)
        self.store.select(sequences)
        self._sinks = [buffer[index] for buffer in self._sinks]
        self._residual = [buffer[index] for buffer in self._residual]
        self._writer = None
        self._kept.clear()
        self.lengths = [self.lengths[s] for s in sequences]
        self.coded = [self.coded[s] for s in sequences]

    def check_crop(self, lengths: Sequence[int]) -> None:
        """See `Layer`: tokens go from the residual window only."""
        checked_crop(self.lengths, lengths)
        for b, (old, new, coded) in enumerate(zip(self.lengths, lengths, self.coded, strict=True)):
            fixed = self.config.sink_tokens + coded
            if coded and new < fixed:
                raise CacheError(
                    f"cannot crop sequence {b} from {old} to {new} tokens: {fixed} of them are sinks or in "
                    "sealed pages, which stay; crop less, or reset the cache"
                )

        check_window_after_crop(self.window, self.lengths, lengths, self._first_page, self.coded)

    def crop(self, lengths: Sequence[int]) -> None:
        """Keep the first `lengths[b]` tokens of sequence b."""
        self.check_crop(lengths)
        self.lengths = list(lengths)

    def reset(self) -> None:
        """Forget every token; the owner of the page table releases the pages."""
        self.lengths = [0] * len(self.lengths)
        self.coded = [0] * len(self.coded)

    def page_counts(self) -> list[int]:
        """Sealed pages of each sequence."""
        return [coded // self.config.page_size for coded in self.coded]

    def first_pages(self) -> list[int]:
        """The first page of each sequence that the next query sees: those before are behind the window."""
        return list(map(self._first_page, self.lengths, self.coded))

    def exact_bytes(self) -> tuple[int, int]:
        """Bytes of the residual window and of the sinks, as allocated."""
        residual, sinks = (sum(b.numel() * b.element_size() for b in bs) for bs in (self._residual, self._sinks))
        return residual, sinks

    def exact_parts(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Keys and values of the sinks, and of the residual window, (B, Hkv, capacity, D); values lie turned."""
        return (self._sinks[0], self._sinks[1]), (self._residual[0], self._residual[1])

    def page_bytes(self) -> tuple[int, int]:
        """Bytes of pages in use, shared ones once, and of pages that wait for tokens."""
        return self.store.page_bytes(self.page_counts())

    def derived_bytes(self) -> int:
        """Bytes of what was made of the codebooks for this layer: the queries' matrix, and what backends look up."""
        return (0 if self.queries is None else self.queries.nbytes()) + self.store.derived_bytes()

    def _first_page(self, n: int, coded: int) -> int:
        """The first page that the next query of a sequence of n tokens sees."""
        if self.window is None:
            return 0
        behind = self.window.first_visible(n) - self.config.sink_tokens
        return min(max(0, behind), coded) // self.config.page_size

    def _coded_after(self, n: int, coded: int) -> int:
        """Coded tokens of a sequence that grew to n tokens."""
        c = self.config
        return max(coded, coded_len(n, page_size=c.page_size, residual=c.residual, sink_tokens=c.sink_tokens))

    def _residual_len(self, n: int, coded: int) -> int:
        return n - min(n, self.config.sink_tokens) - coded

    def _buffers(self, capacity: int) -> list[Tensor]:
        g = self.geometry
        shape = (g.num_sequences, g.num_kv_heads, capacity, g.head_dim)
        return [torch.empty(shape, dtype=g.dtype, device=g.device) for _ in range(2)]

    def _stage(self, keys: Tensor, values: Tensor, padding: Sequence[int]) -> _Staged:
        """Put the new tokens where attention finds them: first into the sinks, then behind the residual."""
        T = keys.shape[2]
        at_once = T == 1 and not self.checks_late and keys.dtype == values.dtype == self.geometry.dtype
        keys, values = keys.detach(), values.detach()  # a cache is no part of a graph
        if self.turn is not None:
            values = self.turn.apply(values)
        if T > 1 or not (self.checks_late or at_once):
            checked_finite(keys, values, padding)
        lengths = [n + T - pad for n, pad in zip(self.lengths, padding, strict=True)]
        after = list(map(self._coded_after, lengths, self.coded))
        firsts = None if self.window is None else list(map(self._first_page, lengths, after))
        self.store.reserve([coded // self.config.page_size for coded in after], firsts)
        residual = self._residual
        if at_once:
            self._write_token(keys, values, padding)
            return _Staged(residual[0], residual[1], lengths, after)
        if T > 1:  # one token always fits: a commit leaves less than R
            most = max(map(self._residual_len, self.lengths, self.coded))
            residual = [buffer.new_empty((*buffer.shape[:2], most + T, buffer.shape[3])) for buffer in self._residual]
            for new, old in zip(residual, self._residual, strict=True):
                new[:, :, :most] = old[:, :, :most]
        groups = defaultdict(list)
        for b, state in enumerate(zip(self.lengths, self.coded, padding, strict=True)):
            groups[state].append(b)
        if T == 1 and len(groups) > 1 and self._write_slots(keys, values, padding):
            return _Staged(residual[0], residual[1], lengths, after)
        for (n, coded, pad), members in groups.items():
            rows = self._rows(members)
            to_sinks = min(max(0, self.config.sink_tokens - n), T - pad)
            start = self._residual_len(n, coded)
            for new, sink, kept in zip((keys, values), self._sinks, residual, strict=True):
                if to_sinks:
                    sink[rows, :, n : n + to_sinks] = new[rows, :, pad : pad + to_sinks].to(sink.dtype)
                if rest := T - pad - to_sinks:
                    kept[rows, :, start : start + rest] = new[rows, :, pad + to_sinks :].to(kept.dtype)
        return _Staged(residual[0], residual[1], lengths, after)

    def _write_token(self, keys: Tensor, values: Tensor, padding: Sequence[int]) -> None:
        """Write one new token a sequence on the CPU; raises `CacheError`, with nothing written, unless it is finite."""
        if self._writer is None:
            self._writer = SlotWriter(self._sinks, self._residual)
        if not self._writer.write(keys, values, *self._slots(padding)):
            checked_finite(keys, values, padding)

    def _write_slots(self, keys: Tensor, values: Tensor, padding: Sequence[int]) -> bool:
        """Write one new token a sequence by one launch, whatever their lengths are; False where torch has to do it."""
        write = slot_writer(keys.device, keys.dtype)
        if write is None or keys.dtype != self.geometry.dtype:
            return False
        for buffers, slots in zip((self._sinks, self._residual), self._slots(padding), strict=True):
            if max(slots) >= 0:
                write(keys, values, *buffers, length_tensor(slots, keys.device))
        return True

    def _slots(self, padding: Sequence[int]) -> tuple[list[int], list[int]]:
        """Where the next token of each sequence goes in the sinks and in the residual, -1 where it does not."""
        states = list(zip(self.lengths, self.coded, padding, strict=True))
        most = self.config.sink_tokens
        return (
            [n if n < most and not pad else -1 for n, _, pad in states],
            [-1 if pad or n < most else n - most - coded for n, coded, pad in states],
        )

    def _commit(self, staged: _Staged) -> None:
        """Seal the pages that are due out of the staged window and keep the rest as the residual."""
        keys, values, lengths = staged.keys, staged.values, staged.lengths
        if staged.coded != self.coded or keys is not self._residual[0]:
            self._seal(keys, values, lengths)
        if self.window is None or self._advanced is None:
            self.coded, self.lengths = staged.coded, lengths
            return
        behind = self.first_pages()
        self.coded, self.lengths = staged.coded, lengths
        if self.first_pages() != behind:
            self._advanced()

    def _seal(self, keys: Tensor, values: Tensor, lengths: list[int]) -> None:
        groups = defaultdict(list)
        for b, state in enumerate(zip(self.coded, lengths, strict=True)):
            groups[state].append(b)
        for (before, total), members in groups.items():
            coded, P = self._coded_after(total, before), self.config.page_size
            first = max(before // P, self._first_page(total, coded))  # no query will see the pages before it
            start, due = first * P - before, coded - before
            if due > start:
                rows = self._rows(members)
                sealed_keys, sealed_values = keys[rows, :, start:due], values[rows, :, start:due]
                if self.checks_late:
                    checked_finite(sealed_keys, sealed_values, [0] * len(members))
                self.store.seal(members, first, sealed_keys, sealed_values)
        # a seal can fail (memory, an interrupt): only now does anything change
        for (before, total), members in groups.items():
            coded = self._coded_after(total, before)
            due = coded - before
            if due or keys is not self._residual[0]:
                rows, left = self._rows(members), self._residual_len(total, coded)
                for buffer, staged in zip(self._residual, (keys, values), strict=True):
                    buffer[rows, :, :left] = staged[rows, :, due : due + left].clone()  # the two can overlap

    def _rows(self, members: list[int]) -> slice | list[int]:
        return slice(None) if len(members) == len(self.lengths) else members
