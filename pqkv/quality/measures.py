"""What a coded cache changes in a model's predictions, position by position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pqkv.lm.head import Head

TILE_BYTES = 256 << 20  # temporaries of the positions that are compared at once
# logits as large as one tile's that are alive at the same time: log p and log q, the difference in the place of one of
# them, p, and masks of a quarter each; before that log p, the coded logits and what becomes of them
_ALIVE = 3.5


@dataclass(frozen=True, slots=True)
class PositionMeasures:
    """Measures of one window at its scored positions (n,): row t predicts token t + 1.

    `agreement[k]` is |topk of both| / k, `top1_in_topk[k]` whether the exact arg-max is among the coded top k;
    `logit_error` is that of `pqkv.quality.logits`, where it was taken.
    """

    nll: Tensor
    nll_exact: Tensor
    kld: Tensor
    agreement: dict[int, Tensor]
    top1_in_topk: dict[int, Tensor]
    logit_error: Tensor | None = None


def positions_at_once(vocab_size: int, budget: int = TILE_BYTES, dtype: torch.dtype = torch.float32) -> int:
    """Positions of a tile whose temporaries, in the type that measures are computed in, stay within `budget` bytes."""
    itemsize = torch.empty((), dtype=_compute(dtype)).element_size()
    return max(1, int(budget / (_ALIVE * vocab_size * itemsize)))


def tile_bytes(vocab_size: int, positions: int, dtype: torch.dtype = torch.float32) -> int:
    """What comparing `positions` positions takes at once."""
    itemsize = torch.empty((), dtype=_compute(dtype)).element_size()
    return int(min(positions, positions_at_once(vocab_size, dtype=dtype)) * _ALIVE * vocab_size * itemsize)


def compare(
    exact: Tensor,
    coded: Tensor,
    targets: Tensor,
    ks: Sequence[int],
    head: Head | None = None,
    *,
    coded_head: Head | None = None,
    budget: int = TILE_BYTES,
) -> PositionMeasures:
    """Compare logits (n, V) of the exact and the coded cache that predict `targets` (n,), or with a `head` the states
    (n, hidden) it makes them of, as many positions at once as fit into `budget` bytes. States of another model than the
    exact ones have a `coded_head` of their own.

    KLD is sum p_exact (log p_exact - log p_coded) in nats; where p_exact is 0 a term is 0.
    Coded logits that are not numbers agree with nothing.
    """
    return compare_all(exact, [coded], targets, ks, head, coded_head=coded_head, budget=budget)[0]


def compare_all(
    exact: Tensor,
    coded: Sequence[Tensor],
    targets: Tensor,
    ks: Sequence[int],
    head: Head | None = None,
    *,
    coded_head: Head | None = None,
    budget: int = TILE_BYTES,
) -> list[PositionMeasures]:
    """`compare` for several coded caches at once: the exact logits of a tile are made once for all of them."""
    size = positions_at_once(exact.shape[-1] if head is None else head.vocab_size, budget, exact.dtype)
    tiles: list[list[PositionMeasures]] = [[] for _ in coded]
    for start in range(0, len(targets), size):
        rows = slice(start, start + size)
        reference = _Reference.of(_log_softmax(exact[rows], head), targets[rows], ks)
        for found, states in zip(tiles, coded, strict=True):
            found.append(_compare(reference, _log_softmax(states[rows], coded_head or head), ks))
    return [_joined(parts, ks) for parts in tiles]


def _joined(tiles: Sequence[PositionMeasures], ks: Sequence[int]) -> PositionMeasures:
    return PositionMeasures(
        nll=torch.cat([t.nll for t in tiles]),
        nll_exact=torch.cat([t.nll_exact for t in tiles]),
        kld=torch.cat([t.kld for t in tiles]),
        agreement={k: torch.cat([t.agreement[k] for t in tiles]) for k in ks},
        top1_in_topk={k: torch.cat([t.top1_in_topk[k] for t in tiles]) for k in ks},
    )


def _compute(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _log_softmax(values: Tensor, head: Head | None) -> Tensor:
    """Of logits, or of what `head` makes of states; the logits themselves are gone when it returns."""
    logits = values if head is None else head(values)
    return logits.to(_compute(logits.dtype)).log_softmax(-1)


@dataclass(frozen=True, slots=True)
class _Reference:
    """What the exact cache says of a tile of positions."""

    log_p: Tensor
    column: Tensor
    nll: Tensor
    top: Tensor

    @classmethod
    def of(cls, log_p: Tensor, targets: Tensor, ks: Sequence[int]) -> _Reference:
        column = targets.to(log_p.device)[:, None]
        top = log_p.topk(min(max(ks), log_p.shape[-1])).indices
        return cls(log_p, column, -log_p.gather(1, column)[:, 0].double().cpu(), top)


def _compare(reference: _Reference, log_q: Tensor, ks: Sequence[int]) -> PositionMeasures:
    """`log_q` is written over."""
    log_p, top_p = reference.log_p, reference.top
    nll = -log_q.gather(1, reference.column)[:, 0].double().cpu()
    most = top_p.shape[-1]
    top_q = log_q.topk(most).indices
    sound = (~log_q.sum(-1).isnan()).double().cpu()  # topk takes NaN for the largest
    agreement, inside = {}, {}
    for k in ks:
        k_here = min(k, most)
        both = (top_p[:, :k_here, None] == top_q[:, None, :k_here]).any(-1)
        agreement[k] = both.double().mean(-1).cpu() * sound
        inside[k] = (top_p[:, :1] == top_q[:, :k_here]).any(-1).double().cpu() * sound
    terms = torch.sub(log_p, log_q, out=log_q).mul_(log_p.exp())
    # a token that the exact cache rules out (p = 0: a masked vocabulary) counts nothing, whatever q is;
    # rounding can leave a sum that is zero in exact arithmetic at -1e-8
    kld = terms.masked_fill_(log_p == -torch.inf, 0).sum(-1).clamp(min=0)
    return PositionMeasures(nll, reference.nll, kld.double().cpu(), agreement, inside)
