"""Linear predictions of one side or layer from another."""

from __future__ import annotations

import torch
from torch import Tensor

_RIDGE = 1e-3  # of the mean variance of what is predicted from


def linear(seen: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (in, out) and bias (out,) of the ridge regression of wanted (1, N, out) on seen (1, N, in)."""
    x, y = seen[0].double(), wanted[0].double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.mT @ x
    ridge = _RIDGE * gram.diagonal().mean().clamp(min=1e-30) * torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + ridge, x.mT @ y)
    return weight.float(), (y_mean - x_mean @ weight).float()
