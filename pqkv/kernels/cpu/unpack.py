"""Codes out of the little-endian bit stream of `pqkv.packing`, a block of subspaces of one page at a time."""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pqkv.compiled import compiled

_WORD = ir.IntType(64)
u64 = numba.uint64


@intrinsic
def _load(typing_context, data, offset):
    """The eight bytes from `offset` on as one number, lowest first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), _WORD.as_pointer())
        return builder.load(place, align=1)

    return types.uint64(data, types.intp), generate


@intrinsic
def _store(typing_context, data, offset, word):
    """Eight bytes of uint8 `data` from `offset` on, the lowest first."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        place = builder.bitcast(builder.gep(array.data, [arguments[1]]), _WORD.as_pointer())
        builder.store(arguments[2], place, align=1)
        return context.get_dummy_value()

    return types.void(data, types.intp, types.uint64), generate


@compiled(inline="always")
def _bits(data, position):
    """At least 57 bits from bit `position` on; zeros beyond the end of `data`."""
    byte = position >> 3
    if byte + 8 <= len(data):
        return _load(data, byte) >> u64(position & 7)
    word = u64(0)
    for i in range(byte, len(data)):
        word |= u64(data[i]) << u64(8 * (i - byte))
    return word >> u64(position & 7)


@compiled(inline="always")
def _spread(word, nbits):
    """The lowest eight codes of `nbits` < 8 bits, one to a byte: halves move apart, then quarters, then each."""
    four, two, one = (u64(1) << u64(4 * nbits)) - u64(1), (u64(1) << u64(2 * nbits)) - u64(1), u64((1 << nbits) - 1)
    word = (word & four) | (((word >> u64(4 * nbits)) & four) << u64(32))
    mask = two | (two << u64(32))
    word = (word & mask) | (((word >> u64(2 * nbits)) & mask) << u64(16))
    mask = one * u64(0x0001000100010001)
    return (word & mask) | (((word >> u64(nbits)) & mask) << u64(8))


@compiled()
def unpack_lines(data, base, line, m, block, slot, count, nbits, step, out):
    """out[j * step + t] = code of token slot + t, t < count, in subspace m + j of the transposed page at base.

    Lines of `line` bytes, one a subspace. Up to 7 entries past `count` are written.
    """
    for j in range(block):
        start = (base + (m + j) * line) * 8 + slot * nbits
        if nbits < 8:
            for t in range(0, count, 8):
                _store(out, j * step + t, _spread(_bits(data, start + t * nbits), nbits))
        else:
            mask = u64((1 << nbits) - 1)
            for t in range(count):
                out[j * step + t] = _bits(data, start + t * nbits) & mask


@compiled()
def unpack_rows(data, base, line, m, block, count, nbits, out):
    """out[t * 8 + j] = code of token t < count in subspace m + j, j < block <= 8, of the row page that begins at base.

    Lines of `line` bytes, one a token.
    """
    for t in range(count):
        start = (base + t * line) * 8 + m * nbits
        if nbits < 8:
            _store(out, t * 8, _spread(_bits(data, start), nbits))
        else:
            mask = u64((1 << nbits) - 1)
            for j in range(block):
                out[t * 8 + j] = _bits(data, start + j * nbits) & mask
