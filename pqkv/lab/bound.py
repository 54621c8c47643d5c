"""How little a Gaussian with these spectra could lose at a rate: reverse water-filling (Cover and Thomas, 10.3.3)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pqkv.codec.samples import Samples
from pqkv.errors import RecordError
from pqkv.record import atomic_write

BOUND_FILE = "bound.csv"


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


def write_bound(folder: Path, kld: Mapping[float, float]) -> Path:
    """`bound.csv`: what `pqkv lab` draws as the bound in the picture of that folder."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("bits", "modelled_kld"))
    table.writerows((f"{bits:g}", f"{value:.4g}") for bits, value in kld.items())
    atomic_write(folder / BOUND_FILE, text.getvalue().encode())
    return folder / BOUND_FILE


def read_bound(folder: Path) -> dict[float, float]:
    """What `write_bound` wrote, empty where it did not. Raises `RecordError` for a file that is something else."""
    path = folder / BOUND_FILE
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return {float(row["bits"]): float(row["modelled_kld"]) for row in csv.DictReader(file)}
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path} is no table of bits and modelled_kld; remove it, or make it again") from error


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
