"""Codebook training: FAISS k-means per subspace, seeded, as `faiss.ProductQuantizer` does (MILLION: 25 iterations)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import torch
from torch import Tensor

from pqkv.codec.codebook import Codebook
from pqkv.config import Scope
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
    balance: bool = True,
    weights: Sequence[Tensor] | None = None,
    progress: Progress | None = None,
) -> tuple[Codebook, ...]:
    """Train one codebook per layer on `samples`, a (Hkv, N, D) float tensor per layer.

    Scope `head` trains on each head's N vectors; `layer` and `global` pool heads (and layers) and draw N vectors
    from the pool, so every scope sees the same number of vectors per codebook. `balance` groups the channels so that
    subspaces carry like variance; `weights`, (Hkv, D) per layer, is the metric (for keys: the root mean square of the
    queries that will meet them). Raises `DataError` for fewer vectors than centroids, and for NaN or infinite ones.
    """
    metric = list(weights) if weights is not None else [torch.ones(s.shape[0], s.shape[2]) for s in samples]
    groups = [list(zip(layer, w, strict=True)) for layer, w in zip(samples, metric, strict=True)]
    if scope == "layer":
        groups = [[_pool([layer], [w], seed)] for layer, w in zip(samples, metric, strict=True)]
    elif scope == "global":
        groups = [[_pool(samples, metric, seed)]]
    books: list[Codebook] = []
    for index, layer_groups in enumerate(groups):
        trained = [_train(vectors, w, num_subspaces, nbits, iterations, seed, balance) for vectors, w in layer_groups]
        centroids, channels, metrics = (torch.stack(parts) for parts in zip(*trained, strict=True))
        books.append(Codebook(centroids, channels if balance else None, metrics if weights is not None else None))
        if progress:
            progress(index + 1, len(groups))
    return tuple(books * len(samples)) if scope == "global" else tuple(books)


def relative_error(book: Codebook, vectors: Tensor) -> float:
    """Squared reconstruction error of vectors (Hkv, N, D) over their squared norm."""
    batch = vectors[None].float()
    restored = book.decode(book.encode(batch))
    return float((restored - batch).square().sum() / batch.square().sum().clamp(min=1e-30))


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


def _pool(samples: Sequence[Tensor], weights: Sequence[Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """Draw N vectors out of all heads of these layers; their weights are averaged as squares."""
    pool = torch.cat([layer.flatten(0, 1) for layer in samples])
    generator = torch.Generator().manual_seed(seed)
    drawn = pool[torch.randperm(len(pool), generator=generator)[: samples[0].shape[1]]]
    return drawn, torch.cat(list(weights)).square().mean(0).sqrt()


def _train(
    vectors: Tensor, weights: Tensor, num_subspaces: int, nbits: int, iterations: int, seed: int, balance: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, D) and weights (D,) -> centroids (M, C, d_sub), channels (D,), weights (D,) in coded order.

    One seeded k-means per subspace, each on one thread and several side by side, so the result does not depend on
    their number.
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
    channels = balanced_channels(scaled.var(0), num_subspaces) if balance else torch.arange(head_dim)
    scaled, weights = scaled[:, channels], weights[channels]
    split = scaled.unflatten(-1, (num_subspaces, -1)).transpose(0, 1)  # (M, N, d_sub)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        found = threads.map(lambda x: _kmeans(x.contiguous().numpy(), nbits, iterations, seed), split)
    centroids = torch.from_numpy(np.stack(list(found)))
    return centroids / weights.reshape(num_subspaces, 1, -1), channels, weights


def _kmeans(points: np.ndarray, nbits: int, iterations: int, seed: int) -> np.ndarray:
    """(N, d_sub) -> (C, d_sub).

    FAISS assigns points of 8 and more dimensions with a fused kernel, 7 to 10 times faster than smaller ones
    (measured with 1.15 on AVX2); zeros in the missing dimensions change no distance.
    """
    faiss.omp_set_num_threads(1)  # of this worker thread
    count, d_sub = points.shape
    padded = np.zeros((count, max(8, d_sub)), dtype=np.float32)
    padded[:, :d_sub] = points
    clustering = faiss.Clustering(padded.shape[1], 2**nbits)
    clustering.niter = iterations
    clustering.seed = seed
    clustering.min_points_per_centroid = 1  # the caller decided how many; FAISS would only warn on stderr
    clustering.max_points_per_centroid = 1 << 30  # never subsample behind the caller's back
    index = faiss.IndexFlatL2(padded.shape[1])
    clustering.train(padded, index)
    centroids = faiss.vector_to_array(clustering.centroids).reshape(2**nbits, -1)[:, :d_sub].copy()
    return _settled(centroids, points, index.search(padded, 1)[1][:, 0])


def _settled(centroids: np.ndarray, points: np.ndarray, nearest: np.ndarray) -> np.ndarray:
    """The means of the points of each centroid; one without points stays.

    FAISS ends an iteration by splitting a big cluster into twins c (1 + e) and c (1 - e) wherever a centroid has no
    points. Where one vector occurs again and again, as a frequent token's value in the first layer does, the twins are
    never told apart, and that vector, midway, would get one code or the other by rounding. After this step it has
    a centroid of its own.
    """
    counts = np.bincount(nearest, minlength=len(centroids))
    used = counts > 0
    for channel in range(points.shape[1]):
        sums = np.bincount(nearest, weights=points[:, channel], minlength=len(centroids))
        centroids[used, channel] = sums[used] / counts[used]
    return centroids
