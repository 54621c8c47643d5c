"""Keys and values of a model on calibration text, sampled evenly over all its tokens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from pqkv.codec.samples import Samples
from pqkv.lm.layers import LayerPlan, layer_plan
from pqkv.lm.model import LanguageModel
from pqkv.lm.one_forward import OneForwardLayer
from pqkv.lm.plugin import Attended, View, attach, exact_attention

_OUTPUTS = ("o_proj", "out_proj", "dense", "wo")  # names of the projection behind attention


def capture(
    lm: LanguageModel,
    windows: np.ndarray,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    starts: np.ndarray | None = None,
    leave_out: int = 0,
    moments: bool = False,
) -> Samples:
    """Run `lm` over windows (n, T) of token ids and keep `count` random positions of all n * T (all if fewer). Window i
    is told that its first token stands at starts[i]; None: all stand at 0. The first `leave_out` tokens of each window
    are not kept: they are like no others, and a cache with sinks codes none of them. With `moments` there are
    `query_moments` and, where the attention modules say so, `outputs`.

    The number of tokens is known beforehand, so the uniform sample a reservoir would converge to is drawn directly;
    all layers and heads sample the same positions.
    """
    attach(lm.model)
    n, T = windows.shape
    chosen = drawn_positions(n, T, count, seed, leave_out)
    plan = layer_plan(lm.model.config)
    attended = Attended()
    layers = [_CaptureLayer(attended, len(chosen), moments=moments) for _ in plan.coded]
    if progress:
        progress(0, n)
    for i, window in enumerate(windows):
        positions = torch.from_numpy(chosen[(chosen >= i * T) & (chosen < (i + 1) * T)] - i * T)
        for layer in layers:
            layer.positions = positions
        told = None if starts is None or not starts[i] else torch.arange(starts[i], starts[i] + T, device=lm.device)
        lm.states(torch.from_numpy(window)[None].to(lm.device), _CaptureCache(plan, layers, attended), positions=told)
        if progress:
            progress(i + 1, n)
    told_starts = np.zeros(n, np.int64) if starts is None else starts
    outputs = [layer.output for layer in layers if layer.output is not None]
    return Samples(
        keys=tuple(layer.kept[0] for layer in layers),
        values=tuple(layer.kept[1] for layer in layers),
        queries=tuple((layer.query_squares / (n * T)).sqrt().float().cpu() for layer in layers),
        positions=torch.from_numpy(told_starts[chosen // T] + chosen % T),
        query_moments=tuple((layer.moments / (n * T)).float().cpu() for layer in layers) if moments else None,
        outputs=tuple(outputs) if len(outputs) == len(layers) else None,
    )


def drawn_positions(windows: int, length: int, count: int, seed: int, leave_out: int) -> np.ndarray:
    """Which of windows * length tokens `capture` keeps, ascending, int64."""
    order = np.random.default_rng(seed).permutation(windows * length)
    return np.sort(order[order % length >= leave_out][:count])


class _CaptureCache(Cache):
    """One forward over layers that outlive it."""

    def __init__(self, plan: LayerPlan, layers: list[_CaptureLayer], attended: Attended) -> None:
        self.coded_layers, self.attended = plan.coded, attended
        super().__init__(layers=plan.build(lambda k: layers[k]))


class _CaptureLayer(OneForwardLayer):
    """Keeps the sampled positions of one forward after another and forgets the rest."""

    def __init__(self, attended: Attended, count: int, *, moments: bool = False) -> None:
        super().__init__(attended)
        self.with_moments = moments
        self.moments: Tensor = torch.zeros(())
        self.output: Tensor | None = None
        self.positions = torch.empty(0, dtype=torch.long)
        self.count, self.taken = count, 0
        self.kept: tuple[Tensor, ...] = ()  # keys and values, (Hkv, count, D) each
        self.query_squares: Tensor = torch.zeros(())

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[View, View]:
        positions = self.positions.to(key_states.device)
        states = key_states[0], value_states[0]
        self.kept = self.kept or tuple(torch.empty(x.shape[0], self.count, x.shape[2]) for x in states)
        for kept, x in zip(self.kept, states, strict=True):
            kept[:, self.taken : self.taken + len(positions)] = x[:, positions].float()
        self.taken += len(positions)
        view = _CaptureView(self, key_states, value_states)
        return view, view

    def add_queries(self, query: Tensor, num_kv_heads: int) -> None:
        """Sum of squares of (1, Hq, T, D) per KV head and channel, mean over the heads of a group."""
        squares = query[0].double().square().sum(1)  # (Hq, D)
        self.query_squares = self.query_squares + squares.unflatten(0, (num_kv_heads, -1)).mean(1)
        if self.with_moments:
            groups = query[0].double().unflatten(0, (num_kv_heads, -1)).flatten(1, 2)  # (Hkv, G * T, D)
            self.moments = self.moments + groups.mT @ groups / (query.shape[1] // num_kv_heads)

    def see_output(self, module: nn.Module, heads: int, num_kv_heads: int) -> None:
        """Keep the metric of values, the sum of W^T W over the heads of a group, (Hkv, D, D)."""
        projection = next((p for name in _OUTPUTS if isinstance(p := getattr(module, name, None), nn.Linear)), None)
        if self.with_moments and self.output is None and projection is not None:
            weight = projection.weight.detach().double().unflatten(1, (heads, -1)).transpose(0, 1)  # (Hq, hidden, D)
            self.output = (weight.mT @ weight).unflatten(0, (num_kv_heads, -1)).sum(1).float().cpu()


class _CaptureView(View):
    def __init__(self, layer: _CaptureLayer, keys: Tensor, values: Tensor) -> None:
        super().__init__(layer.attended)
        self.layer, self.exact_keys, self.exact_values = layer, keys, values

    def attend(
        self, module: nn.Module, query: Tensor, mask: Tensor | None, *, scale: float, window: int | None
    ) -> Tensor:
        self.layer.add_queries(query, self.exact_keys.shape[1])
        self.layer.see_output(module, query.shape[1], self.exact_keys.shape[1])
        return exact_attention(module, query, self.exact_keys, self.exact_values, mask, scale)
