"""What look-ups in byte tables compute, in NumPy: the same integers, and the same floats in the same order."""

import numpy as np
from ptx.rounding import fma32

from pqkv.kernels.cpu.softmax import POWERS

F32 = np.float32
MAGIC = F32(12_582_912.0)


def codes_of(packed, nbits):
    """Lines of 64 packed codes (..., bytes) -> (..., 64)."""
    bits = np.unpackbits(packed, axis=-1, bitorder="little")[..., : 64 * nbits]
    return (bits.reshape(*bits.shape[:-1], 64, nbits) << np.arange(nbits, dtype=np.uint8)).sum(-1)


def components(codes, table, d_sub):
    """Codes (M, 64), table (D, C) -> bytes (D, 64)."""
    return np.stack([table[e, codes[e // d_sub]] for e in range(len(table))])


def scores(codes, table, query, offsets, scales, d_sub):
    """(G, 64) float32."""
    sums = query.astype(np.int64) @ components(codes, table, d_sub).astype(np.int64) - offsets[:, None]
    assert np.abs(sums).max(initial=0) < 2**31
    return sums.astype(np.int32).astype(F32) * scales[:, None]


def mixed(sums, codes, table, integers, scales, d_sub, lanes):
    """sums (D, G, lanes) after groups of blocks: codes (groups, scaled, M, 64), integers (groups, scaled, G, 64),
    scales (groups, G).
    """
    for own, weights, scale in zip(codes, integers, scales, strict=True):
        whole = np.zeros(sums.shape, np.int64)
        for block, weight in zip(own, weights, strict=True):
            found = components(block, table, d_sub).astype(np.int64)
            products = found[:, None] * weight.astype(np.int64)  # (D, G, 64)
            whole += products.reshape(*products.shape[:2], -1, lanes, 4).sum((2, 4))
        assert np.abs(whole).max(initial=0) < 2**31
        sums = fma32(whole.astype(np.int32).astype(F32), np.broadcast_to(scale[None, :, None], sums.shape), sums)
    return sums


def exp2(x):
    tiny = x < F32(-126)
    x = np.where(tiny, F32(-126), x)
    shifted = x + MAGIC
    fraction = x - (shifted - MAGIC)
    power = np.full_like(x, POWERS[0])
    for coefficient in [*POWERS[1:], 1.0]:
        power = fma32(power, fraction, np.full_like(x, coefficient))
    bits = power.view(np.int32) + (shifted.view(np.int32) << 23)
    return np.where(tiny, F32(0), bits.view(F32))


def weighed(scores, top, gains, inverse, mass, norm, scaled, largest):
    """scores (blocks, G, 64), gains and inverse (blocks, 64) or None -> integers (blocks, G, 64), scales (groups, G),
    mass and norm (G, 16).
    """
    blocks, G, _ = scores.shape
    integers, scales = np.zeros((blocks, G, 64), np.int64), np.zeros((blocks // scaled, G), F32)
    mass, norm = mass.copy(), norm.copy()
    for group in range(blocks // scaled):
        own = slice(group * scaled, (group + 1) * scaled)
        for g in range(G):
            rows = exp2(scores[own, g].reshape(-1, 16) - top[g])
            for row in rows:
                mass[g] = mass[g] + row
            if gains is not None:
                rows = rows * gains[own].reshape(-1, 16)
            most = rows.max()
            counts = most > F32(2.0**-100)
            up = F32(largest) / most if counts else F32(0)
            scales[group, g] = most * F32(1 / largest) if counts else F32(0)
            shifted = fma32(rows, np.full_like(rows, up), np.full_like(rows, MAGIC))
            whole = shifted - MAGIC
            integers[own, g] = whole.reshape(scaled, 64).astype(np.int64)
            found = np.zeros(16, F32)
            for i, row in enumerate(whole):
                factor = None if inverse is None else inverse[own].reshape(-1, 16)[i]
                found = found + row if factor is None else fma32(row, factor, found)
            norm[g] = fma32(found, np.full(16, scales[group, g]), norm[g])
    return integers, scales, mass, norm
