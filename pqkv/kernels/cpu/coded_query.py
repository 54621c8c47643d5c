"""The query that coded keys meet and its phasors, for a few rows: one pass over F^-1 as it is kept, in 16 bits or 32.

As operations of torch it is a product of matrices in float32, twice the bytes, and a handful of small ones that each
cost what a page of codes does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from pqkv.compiled import compiled
from pqkv.kernels.cpu.exact_form import FORMS, host_form
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
    splat,
    store,
    tag,
    variable,
    vector,
)

_SUMS = 16  # vectors of 16 floats that are summed at a time: what registers hold


class QueryParts:
    """What queries are multiplied by: inverse (Hkv, D, D) float32 or float16, or (0, D, D) for no change, mean
    (Hkv, P, 2) float32, the conjugates of the mean's pairs (i, i + P) at the phasors' origin, and still (Hkv, D), or
    (0, D) where no mean stands still.
    """

    def __init__(self, inverse: Tensor, mean: Tensor, still: Tensor) -> None:
        self.heads = len(mean)
        self.phasors = min(len(still), 1) + mean.shape[1]
        bits = inverse.view(torch.uint16) if inverse.dtype == torch.float16 else inverse
        self.arrays = tuple(part.contiguous().numpy() for part in (bits, mean, still))
        self._tags: dict[int, tuple[tuple[int, ...], ...]] = {}

    def times(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Query (N, Hq, D) -> times the inverse, (N, Hq, D), and its phasors (N, Hq, P, 2), or (N, Hq, 1 + P, 2) with
        q . still first; both float32.
        """
        rows = np.ascontiguousarray(query.detach().float().numpy())  # attention on codes has no gradient
        N, Hq, D = rows.shape
        turned, phasors = np.empty(rows.shape, np.float32), np.empty((N, Hq, self.phasors, 2), np.float32)
        work = 1e-4 * (N * Hq + 2 * self.heads) * D * D
        if Hq not in self._tags:
            G, converts = Hq // self.heads, FORMS[host_form()].converts
            self._tags[Hq] = tag(G), tag(_lanes(G, D).bit_length() - 1), tag(int(converts))
        run_units(_products, self.heads, work, rows, *self.arrays, turned, phasors, *self._tags[Hq])
        return torch.from_numpy(turned), torch.from_numpy(phasors)


def _lanes(G: int, D: int) -> int:
    """A power of two that divides the row, and as many columns as leave the sums of G heads in registers."""
    lanes = D & -D
    while lanes > 16 and G * lanes > _SUMS * 16:
        lanes //= 2
    return lanes


@intrinsic
def _multiply(typing_context, query, first, matrix, start, out, dim, heads, bits, converts):
    """out[first + g * D + e] = the sum over d of query[first + g * D + d] * matrix[start + d * D + e], g < G; `bits`
    is how often 2 is in the columns that are summed at a time, `converts` says that half precision is widened by an
    instruction.
    """
    G, lanes = len(heads), 1 << len(bits)
    signature = types.void(query, types.intp, matrix, types.intp, out, types.intp, heads, bits, converts)
    halves, widened = matrix.dtype == types.uint16, _converted if len(converts) else _halves

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        query, matrix, out = (data(context, builder, signature, arguments, i) for i in (0, 2, 4))
        first, start, D = arguments[1], arguments[3], arguments[5]
        with cgutils.for_range(builder, builder.udiv(D, I64(lanes))) as chunk:
            column = builder.mul(chunk.index, I64(lanes))
            sums = [variable(builder, constant(floats(lanes), [0.0] * lanes)) for _ in range(G)]
            with cgutils.for_range(builder, D) as loop:
                place = builder.add(builder.add(start, builder.mul(loop.index, D)), column)
                row = widened(builder, matrix, place, lanes) if halves else vector(builder, matrix, place, lanes)
                for g, total in enumerate(sums):
                    row_of_head = builder.add(first, builder.mul(I64(g), D))
                    factor = number(builder, query, builder.add(row_of_head, loop.index))
                    builder.store(add_product(builder, splat(builder, factor, lanes), row, builder.load(total)), total)
            for g, total in enumerate(sums):
                row_of_head = builder.add(first, builder.mul(I64(g), D))
                store(builder, builder.load(total), out, builder.add(row_of_head, column))
        return context.get_dummy_value()

    return signature, generate


def _converted(builder: Any, pointer: Any, offset: Any, lanes: int) -> Any:
    """`lanes` float16 from `offset` on as floats, by the processor's own instruction (F16C)."""
    kind = ir.VectorType(ir.HalfType(), lanes)
    place = builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer())
    return builder.fpext(builder.load(place, align=2), floats(lanes))


def _halves(builder: Any, pointer: Any, offset: Any, lanes: int) -> Any:
    """`lanes` float16 from `offset` on as floats. The sign apart, the other 15 bits lie where float32 has them, and
    exponents differ by 112, of what is infinite or no number by as much again.
    """
    whole = ir.VectorType(I32, lanes)

    def every(value: int) -> Any:
        return constant(whole, [value] * lanes)

    kind = ir.VectorType(I16, lanes)
    loaded = builder.load(builder.bitcast(builder.gep(pointer, [offset]), kind.as_pointer()), align=2)
    bits = builder.zext(loaded, whole)
    magnitude = builder.shl(builder.and_(bits, every(0x7FFF)), every(13))
    scaled = builder.fmul(builder.bitcast(magnitude, floats(lanes)), constant(floats(lanes), [2.0**112] * lanes))
    beyond = builder.icmp_unsigned(">=", magnitude, every(0x7C00 << 13))
    found = builder.select(beyond, builder.add(magnitude, every(224 << 23)), builder.bitcast(scaled, whole))
    sign = builder.shl(builder.and_(bits, every(0x8000)), every(16))
    return builder.bitcast(builder.or_(found, sign), floats(lanes))


@compiled(nogil=True)
def _products(launch, threads, taken, query, inverse, mean, still, turned, phasors, heads, bits, converts):
    given = taken, query, inverse, mean, still, turned, phasors, heads, bits, converts
    return on_threads(launch, threads, _of_heads, given)


@compiled(error_model="numpy", fastmath={"contract", "nsz"})
def _of_heads(taken, query, inverse, mean, still, turned, phasors, heads, bits, converts):
    N, Hq, D = query.shape
    Hkv, P, _ = mean.shape
    G = len(heads)
    first = phasors.shape[2] - P
    h = next_unit(taken)
    while h < Hkv:
        for n in range(N):
            if len(inverse):
                _multiply(query, (n * Hq + h * G) * D, inverse, h * D * D, turned, D, heads, bits, converts)
            else:
                turned[n, h * G : (h + 1) * G] = query[n, h * G : (h + 1) * G]
            for g in range(h * G, (h + 1) * G):
                if first:
                    total = np.float32(0.0)
                    for d in range(D):
                        total += query[n, g, d] * still[h, d]
                    phasors[n, g, 0, 0] = total
                    phasors[n, g, 0, 1] = np.float32(0.0)
                for i in range(P):
                    x, y, u, v = query[n, g, i], query[n, g, i + P], mean[h, i, 0], mean[h, i, 1]
                    phasors[n, g, first + i, 0] = x * u - y * v
                    phasors[n, g, first + i, 1] = x * v + y * u
        h = next_unit(taken)


drop_stale_code(_products)
