"""Codebook training: k-means per subspace, seeded, as `faiss.ProductQuantizer` does from random points."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pqkv.codec.codebook import Codebook
from pqkv.codec.grouping import balanced_channels
from pqkv.codec.kmeans import kmeans
from pqkv.codec.opq import opq_rotation
from pqkv.config import Channels, Init, Scope
from pqkv.errors import DataError

Progress = Callable[[int, int], None]


def train_codebooks(
    samples: Sequence[Tensor],
    num_subspaces: int,
    nbits: int,
    *,
    scope: Scope,
    iterations: int,
    seed: int,
    channels: Channels = "balanced",
    init: Init = "k-means++",
    weights: Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> tuple[Codebook, ...]:
    """Train one codebook per layer on `samples`, a (Hkv, N, D) float tensor per layer.

    Scope `head` trains on each head's N vectors; `layer` and `global` pool heads (and layers) and draw N vectors
    from the pool, so every scope sees the same number of vectors per codebook. `channels` says what a subspace holds:
    neighbours (`adjacent`), channels grouped so that subspaces carry like variance (`balanced`), or those of a learnt
    rotation (`opq`). `init` says where k-means begins (see `kmeans`). `weights`, (Hkv, D) per layer, is the metric (for
    keys: the root mean square of the queries that will meet them). `progress` counts subspaces. `samples` are indexed
    one layer after another, so they may be made when asked for. Each k-means is the work of one thread: the result does
    not depend on their number.

    Raises `DataError` for fewer vectors than centroids, and for NaN or infinite ones.
    """
    metric = list(weights) if weights is not None else [torch.ones(s.shape[0], s.shape[2]) for s in samples]
    pools = 1 if scope == "global" else len(samples)
    report = progress or (lambda done, total: None)
    done, total = 0, pools * num_subspaces * (len(samples[0]) if scope == "head" else 1)
    report(0, total)

    def add(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    books: list[Codebook] = []
    for index in range(pools):
        if scope == "head":
            groups = list(zip(samples[index], metric[index], strict=True))
        else:
            pooled = slice(None) if scope == "global" else slice(index, index + 1)
            groups = [_pool(samples[pooled], metric[pooled], seed)]
        parts = [_split(vectors, w, num_subspaces, nbits, iterations, seed, channels, init) for vectors, w in groups]
        points, metrics, orders = (torch.stack(part) for part in zip(*parts, strict=True))
        found = kmeans(points.flatten(0, 1).numpy(), nbits, iterations, seed, add, init=init)
        centroids = torch.from_numpy(found).unflatten(0, (len(groups), num_subspaces))
        if channels != "opq":  # there the weights come off after the vector is turned back
            centroids = centroids / metrics.unflatten(1, (num_subspaces, 1, -1))
        books.append(
            Codebook(
                centroids,
                orders if channels == "balanced" else None,
                metrics if weights is not None else None,
                orders if channels == "opq" else None,
            )
        )
    return tuple(books * len(samples)) if scope == "global" else tuple(books)


def relative_error(
    book: Codebook, vectors: Tensor, weights: Tensor | None = None, positions: Tensor | None = None
) -> float:
    """Squared error of restored vectors (Hkv, N, D) at positions (N,) over their squared distance to the mean vector of
    their head; both weighted by the squares of weights (Hkv, D), if given.

    Codes do not care where vectors stand. Over their energy an error would look small only because they stand far out,
    as keys with large biases do.
    """
    batch = vectors[None].float()
    metric = torch.ones(()) if weights is None else weights.float().square()[None, :, None]
    coded = book.code(batch, positions)
    restored = book.decode(coded.codes, coded.gains, positions)
    spread = (metric * (batch - batch.mean(2, keepdim=True)).square()).sum()
    return float((metric * (restored - batch).square()).sum() / spread.clamp(min=1e-30))


def _pool(samples: Sequence[Tensor], weights: Sequence[Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """Draw N vectors out of all heads of these layers; their weights are averaged as squares."""
    heads, count, head_dim = samples[0].shape
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(len(samples) * heads * count, generator=generator)[:count]
    drawn = torch.empty(count, head_dim)
    for index, layer in enumerate(samples):  # one after another: together they may be more than memory holds
        here = places // (heads * count) == index
        drawn[here] = layer.flatten(0, 1)[places[here] % (heads * count)].float().cpu()
    return drawn, torch.cat(list(weights)).square().mean(0).sqrt()


def _split(
    vectors: Tensor,
    weights: Tensor,
    num_subspaces: int,
    nbits: int,
    iterations: int,
    seed: int,
    channels: Channels,
    init: Init,
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D) and weights (D,) -> the points of each subspace (M, N, d_sub), weights (D,) as a `Codebook` takes them,
    and the order of the channels (D,) or, for `opq`, the rotation (D, D).
    """
    count, head_dim = vectors.shape
    if count < 2**nbits:
        raise DataError(
            f"{count} calibration vectors cannot train {2**nbits} centroids; "
            "raise --samples and --calibration-tokens, or lower --nbits"
        )
    if not torch.isfinite(vectors).all():
        raise DataError(
            "calibration vectors are NaN or infinite; run the model in another --dtype and check its weights"
        )
    weights = weights / weights.mean()  # only ratios matter
    weights = weights.clamp(min=1e-3)  # a channel no query looks at still gets a finite centroid
    scaled = vectors.float().cpu() * weights
    if channels == "opq":
        order = opq_rotation(scaled, num_subspaces, nbits, rounds=iterations, seed=seed, init=init)
        scaled = scaled @ order.mT
    else:
        order = balanced_channels(scaled.var(0), num_subspaces) if channels == "balanced" else torch.arange(head_dim)
        scaled, weights = scaled[:, order], weights[order]
    return scaled.unflatten(-1, (num_subspaces, -1)).transpose(0, 1).contiguous(), weights, order
