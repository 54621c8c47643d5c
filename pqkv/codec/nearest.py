"""Nearest centroid per subspace: vectors -> codes.

On the CPU vector code emitted by hand in float32 (the distance matrix never reaches memory) and a plain Numba loop in
float64, elsewhere and for other dtypes one batched product and an arg-min. All take the first of equal minima.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable
from torch import Tensor

from pqkv.compiled import compiled
from pqkv.parallel import run_units
from pqkv.thread_code import next_unit, on_threads
from pqkv.vector_code import (
    I16,
    I32,
    I64,
    add_product,
    constant,
    data,
    drop_stale_code,
    floats,
    number,
    shuffle,
    splat,
    tag,
    variable,
    vector,
)

_TILE = 1024  # tokens whose distance matrix is alive at once in the tensor form
_LANES = 8  # centroids in a vector
_SPAN = 256  # tokens of one unit of work


class NearestCentroids:
    """Centroids (H, M, C, d_sub) laid out for the search, once for many calls."""

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids
        H, M, C, d_sub = centroids.shape
        if centroids.device.type == "cpu" and centroids.dtype in (torch.float32, torch.float64):
            # (H * M, d_sub * C): one channel of all centroids is contiguous
            self.columns = centroids.mT.reshape(H * M, d_sub * C).contiguous().numpy()
            self.half_norms = (centroids.square().sum(-1) / 2).reshape(H * M, C).contiguous().numpy()

    def __call__(self, vectors: Tensor) -> Tensor:
        """Codes (H, N, M) int16 (C can be 4096) of vectors (H, N, D) of the same float dtype, D = M * d_sub."""
        H, M, C, d_sub = self.centroids.shape
        if vectors.device.type != "cpu" or vectors.dtype not in (torch.float32, torch.float64):
            return nearest_by_product(vectors, self.centroids)
        split = vectors.detach().reshape(H, -1, M, d_sub).contiguous().numpy()  # codes have no gradient
        codes = np.empty((H, vectors.shape[1], M), dtype=np.int16)
        N, work = vectors.shape[1], 1e-3 * codes.size * C * d_sub
        if vectors.dtype == torch.float32 and C % _LANES == 0:
            run_units(
                _nearest_vectors, H * -(-N // _SPAN), work / _LANES, split, self.columns, self.half_norms,
                codes.reshape(-1), tag(d_sub),
            )  # fmt: skip
        else:
            columns, half_norms = self.columns.reshape(H, M, d_sub, C), self.half_norms.reshape(H, M, C)
            run_units(_nearest_loop, H * M, work, split, columns, half_norms, codes)
        return torch.from_numpy(codes)


def nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """Codes (H, N, M) int16 of the nearest centroids in the Euclidean sense; see `NearestCentroids`."""
    return NearestCentroids(centroids)(vectors)


def nearest_by_product(vectors: Tensor, centroids: Tensor) -> Tensor:
    """The tensor form of `nearest`, on any device: |x - c|^2 / 2 = |c|^2 / 2 - x.c + a constant of x."""
    H, M, C, d_sub = centroids.shape
    half_norms = (centroids.square().sum(-1) / 2).reshape(H * M, 1, C)
    columns = centroids.reshape(H * M, C, d_sub).mT
    split = vectors.unflatten(-1, (M, d_sub)).transpose(1, 2)  # (H, N, M, d_sub) -> (H, M, N, d_sub)
    split = split.reshape(H * M, -1, d_sub)
    codes = torch.empty(H * M, split.shape[1], dtype=torch.int16, device=vectors.device)
    for start in range(0, split.shape[1], _TILE):
        rows = slice(start, start + _TILE)
        codes[:, rows] = torch.baddbmm(half_norms, split[:, rows], columns, alpha=-1).argmin(-1).to(torch.int16)
    return codes.unflatten(0, (H, M)).transpose(1, 2)  # (H, M, N) -> (H, N, M)


@register_jitable
def _shared(d_sub):
    """Tokens that share each load of centroids: as many as registers hold with their channels."""
    return 2 if d_sub <= 2 else 1


def _first_lowest(builder: Any, distance: Any, code: Any) -> Any:
    """Of vectors of distances and codes the code of the smallest distance, the lowest such code, in 16 bits."""
    for half in (4, 2, 1):  # lanes against lanes `half` further on, until the first knows the winner
        turn = [(lane + half) % _LANES for lane in range(_LANES)]
        distance2, code2 = shuffle(builder, distance, turn), shuffle(builder, code, turn)
        earlier = builder.and_(builder.fcmp_ordered("==", distance2, distance), builder.icmp_signed("<", code2, code))
        better = builder.or_(builder.fcmp_ordered("<", distance2, distance), earlier)
        distance = builder.select(better, distance2, distance)
        code = builder.select(better, code2, code)
    return builder.trunc(builder.extract_element(code, I32(0)), I16)


@intrinsic
def _search(typing_context, vectors, first, step, columns, half_norms, entries, codes, place, stride, d_sub):
    """codes[place + i * stride] = the first c with the smallest half_norms[c] - x.c, for a few tokens x,
    vectors[first + i * step ...].

    The length of the tuple `d_sub` is the number of channels; columns[k * entries + c] is channel k of centroid c.
    """
    whole = types.intp
    signature = types.void(vectors, whole, whole, columns, half_norms, whole, codes, whole, whole, d_sub)
    S = len(d_sub)
    tokens = _shared(S)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors, columns, half_norms, codes = (data(context, builder, signature, arguments, i) for i in (0, 3, 4, 6))
        first, step, entries, place, stride = (arguments[i] for i in (1, 2, 5, 7, 8))
        wholes = ir.VectorType(I32, _LANES)
        minus = []
        for i in range(tokens):
            start = builder.add(first, builder.mul(step, I64(i)))
            channels = [number(builder, vectors, builder.add(start, I64(k))) for k in range(S)]
            minus.append([splat(builder, builder.fneg(channel), _LANES) for channel in channels])
        lowest = [variable(builder, constant(floats(_LANES), [float("inf")] * _LANES)) for _ in range(tokens)]
        found = [variable(builder, constant(wholes, [*range(_LANES)])) for _ in range(tokens)]
        index = variable(builder, constant(wholes, [*range(_LANES)]))
        with cgutils.for_range(builder, builder.udiv(entries, I64(_LANES))) as loop:
            c = builder.mul(loop.index, I64(_LANES))
            here = builder.load(index)
            norms = vector(builder, half_norms, c, _LANES)
            rows = [vector(builder, columns, builder.add(builder.mul(entries, I64(k)), c), _LANES) for k in range(S)]
            for i in range(tokens):
                distance = norms
                for k in range(S):
                    distance = add_product(builder, minus[i][k], rows[k], distance)
                known = builder.load(lowest[i])
                less = builder.fcmp_ordered("<", distance, known)
                builder.store(builder.select(less, distance, known), lowest[i])
                builder.store(builder.select(less, here, builder.load(found[i])), found[i])
            builder.store(builder.add(here, constant(wholes, [_LANES] * _LANES)), index)
        for i in range(tokens):
            code = _first_lowest(builder, builder.load(lowest[i]), builder.load(found[i]))
            target = builder.gep(codes, [builder.add(place, builder.mul(stride, I64(i)))])
            builder.store(code, target, align=2)
        return context.get_dummy_value()

    return signature, generate


@compiled(nogil=True)
def _nearest_vectors(launch, threads, taken, vectors, columns, half_norms, codes, d_sub):
    return on_threads(launch, threads, _vector_units, (taken, vectors, columns, half_norms, codes, d_sub))


@compiled()
def _vector_units(taken, vectors, columns, half_norms, codes, d_sub):
    H, N, M, S = vectors.shape
    C = half_norms.shape[1]
    spans = (N + _SPAN - 1) // _SPAN
    flat = vectors.reshape(-1)
    job = next_unit(taken)
    while job < H * spans:
        h, first = job // spans, job % spans * _SPAN
        last = min(first + _SPAN, N)
        tokens = _shared(S)
        spare = np.zeros(tokens * S, np.float32)
        spare_codes = np.empty(tokens, np.int16)
        whole = last - (last - first) % tokens
        for m in range(M):
            own = columns[h * M + m]
            norms = half_norms[h * M + m]
            for n in range(first, whole, tokens):
                row = (h * N + n) * M + m
                _search(flat, row * S, M * S, own, norms, C, codes, row, M, d_sub)
            if whole < last:  # the rest has no full set of tokens
                for i in range(last - whole):
                    for k in range(S):
                        spare[i * S + k] = vectors[h, whole + i, m, k]
                _search(spare, 0, S, own, norms, C, spare_codes, 0, 1, d_sub)
                for i in range(last - whole):
                    codes[(h * N + whole + i) * M + m] = spare_codes[i]
        job = next_unit(taken)


@compiled(nogil=True)
def _nearest_loop(launch, threads, taken, vectors, columns, half_norms, codes):
    return on_threads(launch, threads, _loop_units, (taken, vectors, columns, half_norms, codes))


# reassoc and contract let LLVM vectorize the two passes over C; NaN semantics are kept (no nnan)
@compiled(fastmath={"reassoc", "contract", "nsz"})
def _loop_units(taken, vectors, columns, half_norms, codes):
    H, N, M, d_sub = vectors.shape
    C = half_norms.shape[2]
    job = next_unit(taken)
    while job < H * M:
        h, m = job // M, job % M
        distance = np.empty(C, vectors.dtype)
        for n in range(N):
            for c in range(C):
                distance[c] = half_norms[h, m, c]
            for k in range(d_sub):
                x = vectors[h, n, m, k]
                for c in range(C):
                    distance[c] -= x * columns[h, m, k, c]
            best = distance[0]
            for c in range(C):
                best = min(best, distance[c])
            code = 0
            for c in range(C):
                if distance[c] == best:
                    code = c
                    break
            codes[h, n, m] = code
        job = next_unit(taken)


drop_stale_code(_nearest_vectors)
