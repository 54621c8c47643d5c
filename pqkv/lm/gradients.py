"""Gradients of a text's log-likelihood by keys and values: what Fisher information is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import Tensor, nn
from transformers.cache_utils import Cache

from pqkv.codec.samples import Samples
from pqkv.lm.capture import drawn_positions
from pqkv.lm.head import last_states
from pqkv.lm.layers import LayerPlan, layer_plan
from pqkv.lm.model import LanguageModel
from pqkv.lm.one_forward import OneForwardLayer
from pqkv.lm.plugin import Attended, View, attach, exact_attention
from pqkv.lm.rope import forget_lengths

_ROWS = 128  # whose logits are alive at once


def capture_gradients(
    lm: LanguageModel,
    samples: Samples,
    windows: np.ndarray,
    count: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
    *,
    starts: np.ndarray | None = None,
    leave_out: int = 0,
) -> Samples:
    """`samples` with `key_gradients` and `value_gradients`: of every window's negative log-likelihood, the sum over its
    tokens but the first, by what the cache holds of the sampled tokens. All arguments are those `capture` was given.

    One window at a time runs forwards and backwards, so memory is that of training on one window with frozen weights.
    """
    attach(lm.model)
    lm.head.check()
    n, T = windows.shape
    chosen = drawn_positions(n, T, count, seed, leave_out)
    plan = layer_plan(lm.model.config)
    kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in plan.coded]
    if progress:
        progress(0, n)
    with _frozen(lm.model):
        for i, window in enumerate(windows):
            positions = torch.from_numpy(chosen[(chosen >= i * T) & (chosen < (i + 1) * T)] - i * T)
            cache = _GradientCache(plan)
            told = None if starts is None or not starts[i] else torch.arange(starts[i], starts[i] + T, device=lm.device)
            _backward(lm, torch.from_numpy(window)[None].to(lm.device), cache, told)
            for found, layer in zip(kept, cache.gradient_layers, strict=True):
                found.append(layer.gradients(positions))
            if progress:
                progress(i + 1, n)
    keys, values = (tuple(torch.cat([pair[side] for pair in layer], 1) for layer in kept) for side in (0, 1))
    return replace(samples, key_gradients=keys, value_gradients=values)


def _backward(lm: LanguageModel, ids: Tensor, cache: _GradientCache, told: Tensor | None) -> None:
    """Gradients of the sum of the negative log-likelihoods of ids[0, 1:], into the leaves of the cache's layers."""
    more = {} if told is None else {"position_ids": told[None]}
    with torch.inference_mode(False), torch.enable_grad():
        forget_lengths(lm.model)
        states = last_states(lm.model, ids.clone(), cache, **more)
        # logits of a whole window are large: the states' gradient is gathered a few rows at a time
        ends = states.detach().requires_grad_()
        for start in range(0, ids.shape[1] - 1, _ROWS):
            rows = slice(start, min(start + _ROWS, ids.shape[1] - 1))
            logits = lm.head.differentiable(ends[0, rows])
            at_least_float = logits if logits.dtype == torch.float64 else logits.float()
            F.cross_entropy(at_least_float, ids[0, 1:][rows], reduction="sum").backward()
        states.backward(ends.grad)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No weight asks for a gradient."""
    asking = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in asking:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in asking:
            weight.requires_grad_(True)


class _GradientCache(Cache):
    """For one forward and the backward behind it."""

    def __init__(self, plan: LayerPlan) -> None:
        self.coded_layers, self.attended = plan.coded, Attended()
        self.gradient_layers = [_GradientLayer(self.attended) for _ in plan.coded]
        super().__init__(layers=plan.build(lambda k: self.gradient_layers[k]))


class _GradientLayer(OneForwardLayer):
    """Adds zeros that ask for a gradient to keys and values."""

    leaves: tuple[Tensor, Tensor]

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[View, View]:
        self.leaves = torch.zeros_like(key_states).requires_grad_(), torch.zeros_like(value_states).requires_grad_()
        view = _GradientView(self.attended, key_states + self.leaves[0], value_states + self.leaves[1])
        return view, view

    def gradients(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Of keys and values, (Hkv, positions, D) float32."""
        keys, values = (
            torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in self.leaves
        )  # None: nothing that was scored looked at them
        keys, values = (x[0, :, positions.to(x.device)].float().cpu() for x in (keys, values))
        return keys, values


class _GradientView(View):
    def __init__(self, attended: Attended, keys: Tensor, values: Tensor) -> None:
        super().__init__(attended)
        self.moved_keys, self.moved_values = keys, values

    def attend(
        self, module: nn.Module, query: Tensor, mask: Tensor | None, *, scale: float, window: int | None
    ) -> Tensor:
        return exact_attention(module, query, self.moved_keys, self.moved_values, mask, scale)
