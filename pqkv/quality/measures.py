"""What a coded cache changes in a model's predictions, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TILE = 512  # positions whose float logits are alive at once


@dataclass(frozen=True, slots=True)
class PositionMeasures:
    """Measures of one window at its scored positions (n,): row t predicts token t + 1.

    `agreement[k]` is |topk of both| / k, `top1_in_topk[k]` whether the exact arg-max is among the coded top k.
    """

    nll: Tensor
    nll_exact: Tensor
    kld: Tensor
    agreement: dict[int, Tensor]
    top1_in_topk: dict[int, Tensor]


def compare(exact: Tensor, coded: Tensor, targets: Tensor, ks: Sequence[int]) -> PositionMeasures:
    """Compare logits (n, V) of the exact and the coded cache that predict `targets` (n,).

    KLD is sum p_exact (log p_exact - log p_coded) in nats; where p_exact is 0 a term is 0.
    Coded logits that are not numbers agree with nothing.
    """
    tiles = [
        _compare(exact[rows], coded[rows], targets[rows], ks)
        for rows in (slice(i, i + _TILE) for i in range(0, len(targets), _TILE))
    ]
    return PositionMeasures(
        nll=torch.cat([t.nll for t in tiles]),
        nll_exact=torch.cat([t.nll_exact for t in tiles]),
        kld=torch.cat([t.kld for t in tiles]),
        agreement={k: torch.cat([t.agreement[k] for t in tiles]) for k in ks},
        top1_in_topk={k: torch.cat([t.top1_in_topk[k] for t in tiles]) for k in ks},
    )


def _compare(exact: Tensor, coded: Tensor, targets: Tensor, ks: Sequence[int]) -> PositionMeasures:
    dtype = torch.float64 if exact.dtype == torch.float64 else torch.float32
    log_p, log_q = exact.to(dtype).log_softmax(-1), coded.to(dtype).log_softmax(-1)
    column = targets.to(log_p.device)[:, None]
    # a token that the exact cache rules out (p = 0: a masked vocabulary) counts nothing, whatever q is;
    # rounding can leave a sum that is zero in exact arithmetic at -1e-8
    kld = torch.where(log_p == -torch.inf, 0.0, log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)
    most = min(max(ks), exact.shape[-1])
    top_p, top_q = log_p.topk(most).indices, log_q.topk(most).indices
    sound = (~log_q.isnan().any(-1)).double().cpu()  # topk takes NaN for the largest
    agreement, inside = {}, {}
    for k in ks:
        k_here = min(k, most)
        both = (top_p[:, :k_here, None] == top_q[:, None, :k_here]).any(-1)
        agreement[k] = both.double().mean(-1).cpu() * sound
        inside[k] = (top_p[:, :1] == top_q[:, :k_here]).any(-1).double().cpu() * sound
    return PositionMeasures(
        nll=-log_q.gather(1, column)[:, 0].double().cpu(),
        nll_exact=-log_p.gather(1, column)[:, 0].double().cpu(),
        kld=kld.double().cpu(),
        agreement=agreement,
        top1_in_topk=inside,
    )
