"""Which channels share a subspace."""

from __future__ import annotations

import math

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


def unequal_channels(variance: Tensor, num_subspaces: int, nbits: int, longest: int) -> list[list[int]]:
    """Members of subspaces of unequal length, at most `longest`: channels (D,) from the loudest down, cut where a
    Gaussian with these variances errs least.

    A code of n bits for l channels of geometric mean v errs by l v 2^(-2n/l): loud channels want short subspaces, as
    water-filling gives them more bits. Of all cuts the best, found by dynamic programming.
    """
    D = len(variance)
    loudest = sorted(range(D), key=lambda c: (-float(variance[c]), c))
    logs = [0.0]
    for channel in loudest:
        logs.append(logs[-1] + math.log2(max(float(variance[channel]), 1e-20)))
    least = [[math.inf] * (D + 1) for _ in range(num_subspaces + 1)]
    cut = [[0] * (D + 1) for _ in range(num_subspaces + 1)]
    least[0][0] = 0.0
    for m in range(1, num_subspaces + 1):
        for end in range(m, D + 1):
            for length in range(1, min(longest, end) + 1):
                start = end - length
                error = least[m - 1][start] + length * 2 ** ((logs[end] - logs[start] - 2 * nbits) / length)
                if error < least[m][end]:
                    least[m][end], cut[m][end] = error, start
    members, end = [], D
    for m in range(num_subspaces, 0, -1):
        members.append(loudest[cut[m][end] : end])
        end = cut[m][end]
    return members[::-1]
