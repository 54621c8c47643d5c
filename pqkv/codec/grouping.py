"""Which channels share a subspace."""

from __future__ import annotations

import torch
from torch import Tensor


def balanced_channels(variance: Tensor, num_subspaces: int) -> Tensor:
    """An order of the channels (D,) in which subspaces carry like variance products.

    Every subspace has the same number of codes, so one with two loud channels is coded worse than one with a loud and
    a quiet one. From the loudest down, each channel joins the subspace with the smallest product that has room: OPQ's
    eigenvalue allocation (Ge et al. 2013) without its rotation, so that it costs nothing at attention time.
    """
    d_sub = len(variance) // num_subspaces
    spread = variance.double().clamp(min=1e-20).log()
    logs: list[float] = (spread - spread.min()).tolist()  # not negative: an empty subspace is always the smallest
    members: list[list[int]] = [[] for _ in range(num_subspaces)]
    products = [0.0] * num_subspaces
    for channel in sorted(range(len(logs)), key=lambda c: (-logs[c], c)):
        open_groups = (g for g in range(num_subspaces) if len(members[g]) < d_sub)
        group = min(open_groups, key=lambda g: (len(members[g]) > 0, products[g], g))
        members[group].append(channel)
        products[group] += logs[channel]
    return torch.tensor([channel for group in members for channel in group])
