"""Byte look-ups with AVX2: 16 entries in a register, `vpshufb`; 64 in four, chosen by two bits of the code.

Products are of words (`vpmaddwd`): `vpmaddubsw` would take bytes, but saturates at 16 bits. 256 entries would take
sixteen shuffles a component and are not served.
"""

from __future__ import annotations

from llvmlite import ir

from pqkv.kernels.cpu.byte_lookups.instructions import (
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
from pqkv.vector_code import I16


class Avx2(Portable):
    """Thirty-two tokens a vector."""

    name = "avx2"
    width = 32
    lanes = 8

    def _codes_6(self, pointer: Value, offset: int) -> Value:
        """Of 24 bytes each half of the register takes 12; the upper half's load ends with them."""
        builder = self.builder
        low, high = (load(builder, pointer, offset + step, vector_of(I8, 16)) for step in (0, 8))
        packed = pick(builder, low, high, range(32))
        triples = [[3 * i, 3 * i + 1, 3 * i + 2, None] for i in range(4)]
        lanes = [128 if lane is None else lane + shift for shift in (0, 4) for four in triples for lane in four]
        kind = vector_of(I8, 32)
        order = ir.Constant(kind, [lane if lane < 128 else -128 for lane in lanes])
        return self._spread_6(called(builder, "llvm.x86.avx2.pshuf.b", kind, [packed, order]))

    def look_up(self, codes: Value, table: Value, offset: Value, entries: int) -> Value:
        builder, start = self.builder, at(self.builder, table, offset)
        found = []
        for first in range(0, entries, 16):
            sixteen = load(builder, start, first, vector_of(I8, 16))
            twice = pick(builder, sixteen, None, [*range(16)] * 2)
            found.append(called(builder, "llvm.x86.avx2.pshuf.b", codes.type, [twice, codes]))
        bit = 4
        while len(found) > 1:  # by the lowest of the bits that are left
            sign = builder.shl(builder.bitcast(codes, vector_of(I16, 16)), same(I16, 16, 7 - bit))
            upper = builder.icmp_signed("<", builder.bitcast(sign, codes.type), same(I8, 32, 0))
            found = [builder.select(upper, b, a) for a, b in zip(found[::2], found[1::2], strict=True)]
            bit += 1
        return found[0]

    def word_pairs(self, a: Value, b: Value) -> list[Value]:
        return interleaved(self.builder, a, b)

    def add_words(self, total: Value, a: Value, b: Value) -> Value:
        builder = self.builder
        return builder.add(total, called(builder, "llvm.x86.avx2.pmadd.wd", total.type, [a, b]))

    def keep_weights(self, rows: list[Value], pointer: Value, offset: Value) -> None:
        """Even tokens of 32, then odd ones: as the bytes of a register of words lie."""
        builder, weights = self.builder, self.words(rows)
        for part in range(2):
            for odd in range(2):
                own = pick(builder, weights, None, range(32 * part + odd, 32 * part + 32, 2))
                keep(builder, own, at(builder, pointer, offset), 64 * part + 32 * odd)

    def weights(self, pointer: Value, offset: Value, part: int) -> list[Value]:
        start = at(self.builder, pointer, offset)
        return [load(self.builder, start, 64 * part + 32 * odd, vector_of(I16, 16)) for odd in range(2)]

    def components(self, found: Value) -> list[Value]:
        builder, byte = self.builder, same(I16, 16, 8)
        words = builder.bitcast(found, vector_of(I16, 16))
        return [builder.ashr(builder.shl(words, byte), byte), builder.ashr(words, byte)]

    def add_values(self, sums: list[Value], components: list[Value], weights: list[Value]) -> list[Value]:
        total = sums[0]
        for component, weight in zip(components, weights, strict=True):
            total = self.add_words(total, component, weight)
        return [total]


def interleaved(builder: Value, a: Value, b: Value) -> list[Value]:
    """Bytes of a and b in turns, each widened by a zero byte, within each 16 bytes of a register (`vpunpck`)."""
    width = a.type.count
    none = ir.Constant(a.type, [0] * width)

    def unpacked(x: Value, y: Value, half: int) -> Value:
        lanes = [i + s for lane in range(0, width, 16) for i in range(lane + half, lane + half + 8) for s in (0, width)]
        return pick(builder, x, y, lanes)

    pairs = [unpacked(a, b, half) for half in (0, 8)]
    words = [unpacked(pair, none, half) for pair in pairs for half in (0, 8)]
    return [builder.bitcast(word, vector_of(I16, width // 2)) for word in words]
