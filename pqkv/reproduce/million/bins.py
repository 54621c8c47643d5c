"""Part c of `million`: values without decoding them. Weights of tokens that share a centroid are added up first, in a
bin a subspace and centroid, and each centroid is multiplied once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pqkv.record import Record
from pqkv.reproduce.million.lab import Lab
from pqkv.reproduce.million.reported import HEAD_DIM, NBITS, SUBSPACES
from pqkv.reproduce.tables import Row, claim, of_kind

BINS = "million-bins"
LENGTHS = (64, 256, 4096, 32768)
TOLERANCE = 2e-5  # of the output's largest element, against float64

Numbers = NDArray[np.float32] | NDArray[np.float64]
Codes = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Mixed:
    """Values mixed by weights: `out` (M, d_sub), and what it took: `additions` alone, `products` each with one."""

    out: Numbers
    additions: int
    products: int


def decoded(weights: Numbers, codes: Codes, centroids: Numbers) -> Mixed:
    """As the report has it: every token's vector is looked up and multiplied. weights (n,), codes (n, M), centroids
    (M, C, d_sub); in their dtype.
    """
    M, _, d_sub = centroids.shape
    out = np.zeros((M, d_sub), centroids.dtype)
    products = 0
    for weight, row in zip(weights, codes, strict=True):
        part = weight * centroids[np.arange(M), row]
        out += part
        products += part.size
    return Mixed(out, 0, products)


def binned(weights: Numbers, codes: Codes, centroids: Numbers) -> Mixed:
    """The same by bins, which hold no score and no token: M * C numbers."""
    M, C, _ = centroids.shape
    bins = np.zeros((M, C), centroids.dtype)
    additions = 0
    for weight, row in zip(weights, codes, strict=True):
        bins[np.arange(M), row] += weight
        additions += len(row)
    return Mixed(np.einsum("mc,mcs->ms", bins, centroids), additions, centroids.size)


def bins_part(lab: Lab) -> Iterator[Record]:
    """One head at the report's shape."""
    for tokens in LENGTHS:
        config = {
            "part": "c", "data": "random numbers", "tokens": tokens, "head_dim": HEAD_DIM, "nbits": NBITS,
            "num_subspaces": SUBSPACES, "seed": lab.settings.seed,
        }  # fmt: skip
        yield lab.cell(BINS, config, partial(_measure, config))


def bins_finding(records: Sequence[Record]) -> list[Row]:
    """Whether bins give what decoding gives, and what either multiplies."""
    rows = []
    for record in sorted(of_kind(records, BINS), key=lambda r: r.config["tokens"]):
        c, (row,) = record.config, record.tables["bins"]
        said = (
            f"by bins within {row['error']:.1e} of the largest element in float64 (decoded: {row['decoded_error']:.1e})"
            f", {row['additions']:,} additions and {row['products']:,} products for {row['decoded_products']:,} "
            f"products; {row['bins']:,} bins"
        )
        rows.append(
            claim(
                f"values have to be decoded, {c['tokens']:,} tokens, one head of {c['head_dim']}",
                "tables cannot serve V: 2^8 centroids x seq_len scores", said, row["error"] > TOLERANCE,
            )
        )  # fmt: skip
    return rows


def _measure(config: dict[str, Any]) -> dict[str, Any]:
    draw = np.random.default_rng(config["seed"])
    n, M, C = config["tokens"], config["num_subspaces"], 2 ** config["nbits"]
    centroids = draw.standard_normal((M, C, config["head_dim"] // M)).astype(np.float32)
    codes = draw.integers(0, C, (n, M))
    scores = 3 * draw.standard_normal(n)  # few tokens hold most of the mass
    exact = np.exp(scores - scores.max())
    exact /= exact.sum()
    right = np.einsum("n,nms->ms", exact, centroids.astype(np.float64)[np.arange(M), codes])
    weights = exact.astype(np.float32)
    ways = [way(weights, codes, centroids) for way in (binned, decoded)]
    errors = [float(np.abs(way.out - right).max() / np.abs(right).max()) for way in ways]
    by_bins, by_token = ways
    row = {"error": errors[0], "decoded_error": errors[1], "additions": by_bins.additions, "bins": M * C,
           "products": by_bins.products, "decoded_products": by_token.products}  # fmt: skip
    return {"tables": {"bins": [row]}}
