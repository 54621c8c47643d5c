"""Token-by-token decoding through a coded cache, in one forward.

Row t of a forward sees decoded keys and values in the columns that `coded_len(t)` says are coded and exact ones
elsewhere. `coded_len` changes only every page_size rows, so the rows between two changes are one plain attention
call over a key buffer whose coded prefix grows in place: the cost is a causal forward plus encoding once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from pqkv.cache import coded_len
from pqkv.cache.window import Window
from pqkv.codec import CodebookSet
from pqkv.codec.interface import Codec, Pair
from pqkv.codec.planes import pack_planes, unpack_planes
from pqkv.codec.product import ProductCodec
from pqkv.codec.sizes import CodedSizes
from pqkv.config import CacheConfig
from pqkv.errors import CacheError
from pqkv.lm.causal import causal_rows
from pqkv.lm.layers import layer_plan
from pqkv.lm.one_forward import OneForwardLayer
from pqkv.lm.plugin import Attended, View

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TILE_ROWS = 512  # attended to at once, at most: the mask of a stretch as long as the window would be its square


def tiles(length: int, config: CacheConfig) -> Iterator[tuple[int, int, int]]:
    """(first row, end row, coded tokens) of the stretches of `length` rows that see the same coded columns."""
    start = 0
    while start < length:
        coded = _coded(start, config)
        first_change = config.sink_tokens + config.residual  # a cache of this many tokens seals its first page
        end = first_change + coded
        yield start, min(end, length), coded
        start = end


class ScheduleCache(Cache):
    """A cache for exactly one forward over an empty past; codes nothing it keeps, decides per row what was coded.

    `codec` is one of `pqkv.codec.interface`, or codebooks; None codes nothing, for what a window does alone. With
    `all_coded` every column is coded for every row, the row's own too, but the first `coded_sinks` (MILLION has none).
    `sides` says of each coded layer whether its keys and its values are coded: all of them if None. With `sizes`, what
    is coded goes through bytes, which are counted.
    """

    def __init__(
        self,
        model_config: PreTrainedConfig,
        codec: CodebookSet | Codec | None,
        config: CacheConfig,
        *,
        all_coded: bool = False,
        coded_sinks: int = 0,
        sides: Sequence[tuple[bool, bool]] | None = None,
        sizes: CodedSizes | None = None,
    ) -> None:
        plan = layer_plan(model_config)
        if isinstance(codec, CodebookSet):
            if codec.num_layers != len(plan.coded):
                raise CacheError(f"codebooks for {codec.num_layers} layers cannot serve {plan} of the model")
            codec = ProductCodec(codec)
        if codec is not None and not all_coded and config.page_size % codec.group:
            raise CacheError(
                f"pages of {config.page_size} tokens cannot hold groups of {codec.group} that are coded together: take "
                f"a page size that is a multiple of {codec.group}"
            )
        self.coded_layers, self.attended = plan.coded, Attended()
        chosen = sides or [(codec is not None,) * 2] * len(plan.coded)
        rule = _Rule(config, coded_sinks if all_coded else None)
        coding = _Coding(codec, sizes)
        super().__init__(layers=plan.build(lambda k: _ScheduleLayer(coding, k, chosen[k], rule, self.attended)))


@dataclass(slots=True)
class _Coding:
    """The codec of a forward, what it restored the layer underneath to, and what counts its bytes."""

    codec: Codec | None
    sizes: CodedSizes | None
    below: Pair | None = None

    def restore(self, layer: int, keys: Tensor, values: Tensor, positions: Tensor) -> Pair:
        if self.codec is None:
            raise CacheError("a side is to be coded, and there is no codec")
        self.codec = self.codec.to(keys.device)
        if self.sizes is None:
            found = self.codec.restore(layer, keys, values, positions, self.below)
        else:
            packed = pack_planes(self.codec.encode(layer, keys, values, positions, self.below))
            self.sizes.add(packed, keys.numel())
            found = self.codec.decode(layer, unpack_planes(packed, keys.device), positions, self.below)
        if self.codec.looks_below:
            self.below = found
        return found


@dataclass(frozen=True, slots=True)
class _Rule:
    """Which columns are coded for which rows: by the cache's schedule, or with `coded_sinks` all but so many."""

    config: CacheConfig
    coded_sinks: int | None

    @property
    def first(self) -> int:
        """The first column that can be coded."""
        return self.config.sink_tokens if self.coded_sinks is None else self.coded_sinks

    def stretches(self, length: int) -> Iterator[tuple[int, int, int]]:
        """See `tiles`; those of more than `TILE_ROWS` rows in parts."""
        whole = [(0, length, max(0, length - self.first))]
        for start, stop, coded in tiles(length, self.config) if self.coded_sinks is None else whole:
            for i in range(start, stop, TILE_ROWS):
                yield i, min(i + TILE_ROWS, stop), coded

    def end(self, length: int) -> int:
        """The end of what is coded for any of `length` rows."""
        return length if self.coded_sinks is not None else self.first + _coded(length - 1, self.config)

    @property
    def window(self) -> Window | None:
        """Through which all rows see."""
        return Window.of(self.config.window, self.config.window_sinks)

    def count(self, attended: Attended, batch: int, start: int, stop: int, coded: int) -> None:
        """Tell what the rows of a stretch see."""
        if (window := self.window) is not None:
            for row in range(start, stop):
                end = row + 1 if self.coded_sinks is not None else self.first + coded
                attended.columns += batch * window.seen(row, 0, row + 1)
                attended.coded_columns += batch * window.seen(row, self.first, end)
            return
        attended.columns += batch * (_up_to(stop) - _up_to(start))
        if self.coded_sinks is None:
            attended.coded_columns += batch * (stop - start) * coded
        else:
            attended.coded_columns += batch * (_up_to(stop - self.first) - _up_to(start - self.first))


class _ScheduleLayer(OneForwardLayer):
    def __init__(self, coding: _Coding, layer: int, coded: tuple[bool, bool], rule: _Rule, attended: Attended) -> None:
        super().__init__(attended)
        self.coding, self.layer, self.coded, self.rule = coding, layer, coded, rule

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[View, View]:
        if self.is_initialized:
            raise CacheError("a schedule cache serves one forward")
        self.lazy_initialization(key_states, value_states)
        view = _ScheduleView(self, key_states, value_states)
        return view, view


class _ScheduleView(View):
    def __init__(self, layer: _ScheduleLayer, keys: Tensor, values: Tensor) -> None:
        super().__init__(layer.attended)
        self.layer, self.exact_keys, self.exact_values = layer, keys, values

    def attend(
        self, module: nn.Module, query: Tensor, mask: Tensor | None, *, scale: float, window: int | None
    ) -> Tensor:
        if mask is not None or window is not None:
            raise CacheError("a schedule is evaluated on whole windows without padding under full causal attention")
        # half-precision models: backends compute in float32 on centroids that are float32, so does this
        layer, compute = self.layer, torch.float64 if query.dtype == torch.float64 else torch.float32
        keys, values = self.exact_keys.to(compute), self.exact_values.to(compute)
        B, T = keys.shape[0], keys.shape[2]
        first, end = layer.rule.first, layer.rule.end(T)
        decoded = [keys[:, :, first:], values[:, :, first:]]
        if any(layer.coded) and end > first:
            positions = torch.arange(first, end, device=keys.device)
            found = layer.coding.restore(layer.layer, keys[:, :, first:end], values[:, :, first:end], positions)
            decoded = [
                restored.to(compute) if coded else exact
                for restored, coded, exact in zip(found, layer.coded, decoded, strict=True)
            ]
        mixed = [keys.clone(), values.clone()]
        out = query.new_empty(query.shape)
        done = 0
        for start, stop, coded in layer.rule.stretches(T):
            if any(layer.coded):
                layer.rule.count(self.attended, B, start, stop, coded)
            for buffer, restored in zip(mixed, decoded, strict=True):
                buffer[:, :, first + done : first + coded] = restored[:, :, done:coded]
            done = coded
            rows, (k, v) = query[:, :, start:stop].to(compute), (buffer[:, :, :stop] for buffer in mixed)
            out[:, :, start:stop] = causal_rows(rows, k, v, scale, layer.rule.window)
        return out.transpose(1, 2)


def _up_to(rows: int) -> int:
    """1 + 2 + ... + rows: the columns that so many rows of a causal forward see."""
    return max(0, rows) * (max(0, rows) + 1) // 2


def _coded(cached: int, config: CacheConfig) -> int:
    return coded_len(cached, page_size=config.page_size, residual=config.residual, sink_tokens=config.sink_tokens)
