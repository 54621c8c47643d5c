"""Byte look-ups with AVX-512 VBMI and VNNI: 64 tokens a vector.

256 entries are two `vpermi2b` and a blend on the code's top bit, 64 one `vpermb`, 16 one `vpshufb`. Values multiply
bytes by weights in two planes of a byte each (`vpdpbusd`); keys multiply words (`vpdpwssd`), since planes of a query
would take twice the accumulators.
"""

from __future__ import annotations

import llvmlite.binding as llvm
from llvmlite import ir

from pqkv.kernels.cpu.byte_lookups.avx2 import interleaved
from pqkv.kernels.cpu.byte_lookups.instructions import (
    BLOCK,
    I8,
    Portable,
    Value,
    at,
    called,
    keep,
    load,
    pick,
    same,
    vector_of,
)
from pqkv.vector_code import I16, I32

_BYTES = vector_of(I8, BLOCK)
_SINCE_21 = llvm.llvm_version_info[0] >= 21  # byte operands of vpdpbusd are bytes, words of vpdpwssd words


class Avx512(Portable):
    """Sixty-four tokens a vector."""

    name = "avx512"
    scaled = 4
    largest_weight = 65_535
    value_sums = 2  # upper and lower bytes of the weights
    registers = 32

    def _codes_6(self, pointer: Value, offset: int) -> Value:
        """Six bytes to eight codes: `vpermb` spreads them, `vpmultishiftqb` takes eight bits from every sixth on."""
        builder = self.builder
        packed = load(builder, pointer, offset, vector_of(I8, 48))
        spread = pick(builder, packed, None, [6 * (i // 8) + min(i % 8, 5) for i in range(BLOCK)])
        starts = ir.Constant(_BYTES, [6 * (i % 8) for i in range(BLOCK)])
        found = called(builder, "llvm.x86.avx512.pmultishift.qb.512", _BYTES, [starts, spread])
        return builder.and_(found, same(I8, BLOCK, 63))

    def look_up(self, codes: Value, table: Value, offset: Value, entries: int) -> Value:
        builder, start = self.builder, at(self.builder, table, offset)
        if entries == 16:
            sixteen = load(builder, start, 0, vector_of(I8, 16))
            everywhere = pick(builder, sixteen, None, [*range(16)] * 4)
            return called(builder, "llvm.x86.avx512.pshuf.b.512", _BYTES, [everywhere, codes])
        tables = [load(builder, start, first, _BYTES) for first in range(0, entries, BLOCK)]
        if entries == 64:
            return called(builder, "llvm.x86.avx512.permvar.qi.512", _BYTES, [tables[0], codes])
        name = "llvm.x86.avx512.vpermi2var.qi.512"
        low, high = (called(builder, name, _BYTES, [tables[i], codes, tables[i + 1]]) for i in (0, 2))
        return builder.select(builder.icmp_signed("<", codes, same(I8, BLOCK, 0)), high, low)

    def word_pairs(self, a: Value, b: Value) -> list[Value]:
        return interleaved(self.builder, a, b)

    def add_words(self, total: Value, a: Value, b: Value) -> Value:
        builder = self.builder
        if not _SINCE_21:
            a, b = (builder.bitcast(x, total.type) for x in (a, b))
        return called(builder, "llvm.x86.avx512.vpdpwssd.512", total.type, [total, a, b])

    def keep_weights(self, weights: Value, pointer: Value, offset: Value) -> None:
        builder, start = self.builder, at(self.builder, pointer, offset)
        high = builder.trunc(builder.lshr(weights, same(I16, BLOCK, 8)), _BYTES)
        keep(builder, high, start, 0)
        keep(builder, builder.trunc(weights, _BYTES), start, BLOCK)

    def weights(self, pointer: Value, offset: Value, part: int) -> list[Value]:
        start = at(self.builder, pointer, offset)
        return [load(self.builder, start, plane * BLOCK, _BYTES) for plane in range(2)]

    def components(self, found: Value) -> list[Value]:
        return [found]

    def add_values(self, sums: list[Value], components: list[Value], weights: list[Value]) -> list[Value]:
        builder, (found,) = self.builder, components
        made = []
        for total, plane in zip(sums, weights, strict=True):
            given = [plane, found]
            if not _SINCE_21:
                given = [builder.bitcast(x, total.type) for x in given]
            made.append(called(builder, "llvm.x86.avx512.vpdpbusd.512", total.type, [total, *given]))
        return made

    def folded(self, sums: list[Value]) -> Value:
        high, low = sums
        return self.builder.add(self.builder.shl(high, same(I32, self.lanes, 8)), low)
