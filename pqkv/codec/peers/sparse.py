"""Numbers of a matrix that are kept exactly: how many a row has, in which columns, and what they are."""

from __future__ import annotations

import torch
from torch import Tensor

from pqkv.codec.peers.minmax import half
from pqkv.codec.planes import Plane, Planes


def sparse_planes(rows: Tensor, chosen: Tensor) -> dict[str, Plane]:
    """Of rows (..., W) the chosen ones (bool): counts (...), and column and float16 number of each. Counts and columns
    take a byte where rows are short enough, else two.
    """
    W = rows.shape[-1]
    columns = chosen.nonzero()[:, -1]
    return {
        "outlier_counts": Plane(chosen.sum(-1).to(torch.uint8 if W < 256 else torch.int16)),
        "outlier_channels": Plane(columns.to(torch.uint8 if W <= 256 else torch.int16)),
        "outliers": Plane(half(rows[chosen])),
    }


def put_sparse(rows: Tensor, planes: Planes) -> Tensor:
    """Rows (..., W) with what `sparse_planes` kept in its places; themselves where nothing was."""
    if "outliers" not in planes:
        return rows
    flat = rows.flatten(0, -2).clone()
    counts = planes["outlier_counts"].values.flatten().long()
    owners = torch.arange(len(flat), device=flat.device).repeat_interleave(counts)
    flat[owners, planes["outlier_channels"].values.long()] = planes["outliers"].values.to(flat.dtype)
    return flat.reshape(rows.shape)
