"""Muon for the matrices inside the layers, AdamW for embedding and norms."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

# The quintic of Keller Jordan's Muon (2024): five steps bring all singular values near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315


class Muon(Optimizer):
    """Momentum orthogonalized by Newton-Schulz, all matrices of one shape in one batched product.

    torch's own Muon computes in bfloat16, one matrix after another: on a processor without bfloat16 arithmetic a step
    takes longer than the backward pass. This one computes in `dtype`: bfloat16 on a GPU, float32 on a CPU.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float, dtype: torch.dtype) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # noqa: ANN401 - torch's own signature
        """One update of all matrices; a closure is not called."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(state["momentum"], group["momentum"])  # Nesterov's look ahead
                by_shape[parameter.shape].append((parameter, update))
            for shape, pairs in by_shape.items():
                directions = orthogonal(torch.stack([update for _, update in pairs]).to(self._dtype))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for (parameter, _), direction in zip(pairs, directions, strict=True):
                    parameter.add_(direction.to(parameter.dtype), alpha=-group["lr"] * scale)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (n, a, b) with singular values moved to between about 0.7 and 1.2, but for those under about 0.002 of
    the matrix's norm, which five steps do not lift that far.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x.mT if tall else x


def optimizers(model: nn.Module, muon_lr: float, adam_lr: float) -> list[Optimizer]:
    """Both optimizers of a transformers Llama with tied embeddings, fused where the device has it."""
    inner, outer = [], []
    for name, parameter in model.named_parameters():
        (inner if parameter.ndim == 2 and "embed_tokens" not in name else outer).append(parameter)
    cuda = outer[0].is_cuda
    return [
        Muon(inner, muon_lr, 0.95, torch.bfloat16 if cuda else torch.float32),
        AdamW(outer, adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=cuda),
    ]
