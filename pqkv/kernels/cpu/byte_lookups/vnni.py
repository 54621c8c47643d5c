"""Dot products of bytes (`vpdpbusd`) in place of words: values of every processor that has them, on its widest vectors,
and look-ups of AVX2 with them for processors that have no AVX-512 VBMI: those with AVX-VNNI (client processors since
Alder Lake), and Cascade Lake.
"""

from __future__ import annotations

import llvmlite.binding as llvm

from pqkv.kernels.cpu.byte_lookups.avx2 import Avx2
from pqkv.kernels.cpu.byte_lookups.instructions import (
    BLOCK,
    I8,
    Portable,
    Value,
    at,
    called,
    keep,
    load,
    same,
    vector_of,
)
from pqkv.vector_code import I16, I32

SINCE_21 = llvm.llvm_version_info[0] >= 21  # byte operands of vpdpbusd are bytes, words of vpdpwssd words


class BytePlanes(Portable):
    """Values multiply bytes by weights in two planes of a byte each, the upper bytes of a block first."""

    scaled = 4
    largest_weight = 65_535
    value_sums = 2  # upper and lower bytes of the weights

    def dot_bytes(self, total: Value, unsigned: Value, signed: Value) -> Value:
        """total, int32, and to each lane the products of four unsigned bytes with four signed ones."""
        given = [unsigned, signed]
        if not SINCE_21:
            given = [self.builder.bitcast(x, total.type) for x in given]
        name = f"llvm.x86.avx512.vpdpbusd.{8 * self.width}"
        return called(self.builder, name, total.type, [total, *given])

    def keep_weights(self, rows: list[Value], pointer: Value, offset: Value) -> None:
        """The upper bytes of the lower halves, then the lower ones."""
        builder, start, kind = self.builder, at(self.builder, pointer, offset), vector_of(I8, BLOCK)
        weights = self.words(rows)
        high = builder.trunc(builder.lshr(weights, same(I16, BLOCK, 8)), kind)
        keep(builder, high, start, 0)
        keep(builder, builder.trunc(weights, kind), start, BLOCK)

    def weights(self, pointer: Value, offset: Value, part: int) -> list[Value]:
        """Both planes of a part of a block."""
        start, kind = at(self.builder, pointer, offset), vector_of(I8, self.width)
        return [load(self.builder, start, plane * BLOCK + part * self.width, kind) for plane in range(2)]

    def components(self, found: Value) -> list[Value]:
        """Looked-up bytes as they are."""
        return [found]

    def add_values(self, sums: list[Value], components: list[Value], weights: list[Value]) -> list[Value]:
        """A sum a plane, and to it its products."""
        (found,) = components
        return [self.dot_bytes(total, plane, found) for total, plane in zip(sums, weights, strict=True)]

    def folded(self, sums: list[Value]) -> Value:
        """The upper plane's sum counts 256 times."""
        high, low = sums
        return self.builder.add(self.builder.shl(high, same(I32, self.lanes, 8)), low)


class Vnni(BytePlanes, Avx2):
    """Thirty-two tokens a vector. Keys multiply words: planes of a query would take twice the accumulators, more than
    there are registers.
    """

    name = "vnni"
