"""How little a Gaussian with these spectra could lose at a rate: reverse water-filling (Cover and Thomas, 10.3.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pqkv.codec.means import Mean, TurningMean, means
from pqkv.codec.rotary import Rotary
from pqkv.codec.samples import Samples
from pqkv.errors import ConfigError, RecordError
from pqkv.record import Record, RecordStore

BOUND_FOLDER = "bound"  # in that of a lab: records of kind `bound`


@dataclass(frozen=True, slots=True)
class SideLoss:
    """A side coded alone: error over spread that codes have and that the bound allows, and the KLD measured in nats."""

    bits: float
    error: float
    bound: float
    kld: float


def modelled_kld(sides: Mapping[str, Sequence[SideLoss]]) -> dict[float, float]:
    """What the bound would lose in nats, by bits: a model. KLD is taken to be a power of a side's error, its exponent
    fitted through what was measured at several widths; each side is carried to its bound along that line, and what they
    lose is added up. Widths that every side has, at least two.
    """
    totals: dict[float, float] = {}
    widths = set.intersection(*({loss.bits for loss in losses} for losses in sides.values()))
    for losses in sides.values():
        slope = _slope([(math.log(loss.error), math.log(loss.kld)) for loss in losses])
        for loss in losses:
            if loss.bits in widths:
                own = loss.kld * (loss.bound / loss.error) ** slope
                totals[loss.bits] = totals.get(loss.bits, 0.0) + own
    return dict(sorted(totals.items()))


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line."""
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def bound_losses(record: Record) -> dict[str, list[SideLoss]]:
    """By side what a record of kind `bound` holds. Raises `RecordError` for one that lacks it."""
    found: dict[str, list[SideLoss]] = {}
    try:
        for row in record.tables["losses"]:
            loss = SideLoss(*(float(row[name]) for name in ("bits", "error", "bound", "kld")))
            found.setdefault(row["side"], []).append(loss)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"the record {record.digest} holds no losses of sides and bits: make it again") from error
    return found


def read_bound(folder: Path, model: str) -> dict[float, float]:
    """Modelled KLD by bits, of the newest record of this model in the folder `bound` of a lab's; empty without one."""
    own = [r for r in RecordStore(folder / BOUND_FOLDER).load_all() if r.status == "ok" and r.config["model"] == model]
    return modelled_kld(bound_losses(max(own, key=lambda record: record.started_at))) if own else {}


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


def relative_bound(
    samples: Samples, side: str, bits: Sequence[float], *, around: Mean = "constant", positions: int = 0
) -> dict[float, float]:
    """By bits: least error of a side over its spread, in the metric of what meets it, mean over layers; as its Gaussian
    has it. The spread is that around a mean that stands still, whatever mean is taken out.

    Keys with rotary embedding have another Gaussian at every position: that of keys before it, turned. With `positions`
    the bound is for a code that knows where it stands, at the same rate a token everywhere: the mean over so many
    positions, evenly out of the samples' own. Without, the Gaussian is one for all positions, `around` its mean.
    """
    totals = dict.fromkeys(bits, 0.0)
    metric = samples.metric(side)
    for layer, vectors in enumerate(samples.of(side)):
        x = vectors.double()
        roots = torch.eye(x.shape[-1]).double().expand(len(x), -1, -1)
        if metric is not None:
            values, axes = torch.linalg.eigh(metric[layer].double())
            roots = axes * values.clamp(min=0).sqrt()[:, None]
        whole = roots.mT @ _covariances(x) @ roots
        if positions:
            met = [roots.mT @ cov @ roots for cov in _turned_covariances(samples, layer, x, positions)]
        elif around == "turning":
            met = [roots.mT @ _covariances(_around_turning(samples, layer, x)) @ roots]
        else:
            met = [whole]
        spread = float(whole.diagonal(dim1=-2, dim2=-1).sum())
        spectra = [torch.linalg.eigvalsh(cov).clamp(min=0) for cov in met]
        for b in bits:
            lost = sum(distortion_at(lam, b) * len(lam) for heads in spectra for lam in heads) / len(spectra)
            totals[b] += lost / spread / len(samples.of(side))
    return totals


def _covariances(x: Tensor) -> Tensor:
    """(H, D, D) of (H, N, D)."""
    return torch.stack([head.mT.cov() for head in x])


def _rotary(samples: Samples, layer: int) -> tuple[Rotary, Tensor]:
    if samples.rotary is None or samples.positions is None:
        raise ConfigError("a bound of codes that know their position wants positions and the rotary embedding")
    return samples.rotary[layer], samples.positions


def _around_turning(samples: Samples, layer: int, x: Tensor) -> Tensor:
    """Keys (H, N, D) less the mean that turns with their position."""
    rotary, at = _rotary(samples, layer)
    constant, turning = means("turning", x, at, rotary, None, None)
    return x - TurningMean(constant, turning, rotary, 1).at(at)


def _turned_covariances(samples: Samples, layer: int, x: Tensor, count: int) -> Iterator[Tensor]:
    """(H, D, D) of keys at each of `count` positions: their covariance before rotary embedding, turned."""
    rotary, at = _rotary(samples, layer)
    still = _covariances(rotary.take_off(x, at))
    ordered = at.sort().values
    for place in ordered[torch.linspace(0, len(ordered) - 1, count).long()]:
        here = place.expand(x.shape[-1])
        half = rotary.turn(still, here)  # every row of it: C R^T, as C is symmetric
        yield rotary.turn(half.mT.contiguous(), here)  # R (C R^T)
