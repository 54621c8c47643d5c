"""Byte look-ups with AVX-512 VBMI and VNNI: 64 tokens a vector.

256 entries are two `vpermi2b` and a blend on the code's top bit, 64 one `vpermb`, 16 one `vpshufb`. Values multiply
bytes (`vnni.BytePlanes`); keys multiply words (`vpdpwssd`), since planes of a query would take twice the accumulators.
"""

from __future__ import annotations

from llvmlite import ir

from pqkv.kernels.cpu.byte_lookups.avx2 import interleaved
from pqkv.kernels.cpu.byte_lookups.instructions import (
    BLOCK,
    I8,
    Value,
    at,
    called,
    joined,
    keep,
    load,
    pick,
    same,
    vector_of,
)
from pqkv.kernels.cpu.byte_lookups.vnni import SINCE_21, BytePlanes
from pqkv.vector_code import I16, I32

_BYTES = vector_of(I8, BLOCK)


class Avx512(BytePlanes):
    """Sixty-four tokens a vector."""

    name = "avx512"
    roomy = True

    def _codes_6(self, pointer: Value, offset: int) -> Value:
        """Six bytes to eight codes: `vpermb` spreads them, `vpmultishiftqb` takes eight bits from every sixth on."""
        builder = self.builder
        seen = ir.Constant(vector_of(ir.IntType(1), BLOCK), [1] * 48 + [0] * 16)  # nothing behind them is touched
        start = builder.bitcast(at(builder, pointer, offset), _BYTES.as_pointer())
        packed = called(builder, "llvm.masked.load.v64i8.p0", _BYTES, [start, I32(1), seen, same(I8, BLOCK, 0)])
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

    def words(self, rows: list[Value]) -> Value:
        return joined(self.builder, self._lower_halves(rows))

    def keep_weights(self, rows: list[Value], pointer: Value, offset: Value) -> None:
        """Both planes by `vpermi2b`, which takes every second byte of two vectors at once: `vpmovwb` takes two steps
        for one vector.
        """
        builder, start = self.builder, at(self.builder, pointer, offset)
        low, high = (builder.bitcast(half, _BYTES) for half in self._lower_halves(rows))
        for plane in range(2):
            bytes_of_one = ir.Constant(_BYTES, [2 * i + 1 - plane for i in range(BLOCK)])
            found = called(builder, "llvm.x86.avx512.vpermi2var.qi.512", _BYTES, [low, bytes_of_one, high])
            keep(builder, found, start, plane * BLOCK)

    def _lower_halves(self, rows: list[Value]) -> list[Value]:
        """Of four <16 x i32>, two at a time (`vpermi2w`): <32 x i16>."""
        builder, kind = self.builder, vector_of(I16, 32)
        even = ir.Constant(kind, [2 * i for i in range(32)])
        numbers = [builder.bitcast(row, kind) for row in rows]
        name = "llvm.x86.avx512.vpermi2var.hi.512"
        return [called(builder, name, kind, [numbers[i], even, numbers[i + 1]]) for i in (0, 2)]

    def word_pairs(self, a: Value, b: Value) -> list[Value]:
        return interleaved(self.builder, a, b)

    def add_words(self, total: Value, a: Value, b: Value) -> Value:
        builder = self.builder
        if not SINCE_21:
            a, b = (builder.bitcast(x, total.type) for x in (a, b))
        return called(builder, "llvm.x86.avx512.vpdpwssd.512", total.type, [total, a, b])
