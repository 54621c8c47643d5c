"""How little a Gaussian with these spectra could lose at a rate: reverse water-filling (Cover and Thomas, 10.3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pqkv.codec.samples import Samples


def distortion_at(eigenvalues: Tensor, bits: float) -> float:
    """Least mean squared error a component of a Gaussian with eigenvalues (D,) at `bits` bits a component.

    Components louder than the water level are coded to that level, the others not at all.
    """
    lam = eigenvalues.double().clamp(min=1e-30).sort(descending=True).values
    D = len(lam)
    logs = lam.log2().cumsum(0)
    for k in range(D, 0, -1):  # k components above the water: the level at which they take all the bits
        level = 2 ** ((float(logs[k - 1]) - 2 * bits * D) / k)
        if level <= float(lam[k - 1]) * (1 + 1e-9):  # equal where no bits are dealt out
            return (k * level + float(lam[k:].sum())) / D
    raise AssertionError("one component alone is always above the water")


def relative_bound(samples: Samples, side: str, bits: Sequence[float], *, pre_rope: bool = False) -> dict[float, float]:
    """By bits: least error of a side over its spread, in the metric of what meets it, mean over layers; as its Gaussian
    has it. `pre_rope` takes keys back to position 0 first, where their spectrum is steeper.
    """
    totals = dict.fromkeys(bits, 0.0)
    metric = samples.metric(side)
    for layer, vectors in enumerate(samples.of(side)):
        x = vectors.double()
        if pre_rope:
            assert samples.rotary is not None
            assert samples.positions is not None
            x = samples.rotary[layer].take_off(x, samples.positions)
        spread, lost = 0.0, dict.fromkeys(bits, 0.0)
        for head in range(x.shape[0]):
            cov = x[head].mT.cov()
            if (
                metric is not None and not pre_rope
            ):  # queries turn as well: before rotary embedding there is no one metric
                values, axes = torch.linalg.eigh(metric[layer][head].double())
                root = axes * values.clamp(min=0).sqrt()[None]
                cov = root.mT @ cov @ root
            eigenvalues = torch.linalg.eigvalsh(cov).clamp(min=0)
            spread += float(eigenvalues.sum())
            for b in bits:
                lost[b] += distortion_at(eigenvalues, b) * len(eigenvalues)
        for b in bits:
            totals[b] += lost[b] / spread / len(samples.of(side))
    return totals
