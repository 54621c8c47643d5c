"""Look-ups in byte tables with a weight of one byte in place of two, and a number of a query: the byte form.

The same look-ups, half of the products. A weight of one byte is wrong by some thousandths of the output; a query's
number moves scores by 0.6% of their standard deviation, and weights with them. `largest_query` and `largest_weight` are
what a path's products can hold: `vpdpbusd` takes whole bytes, while `vpmaddubsw` of AVX2 saturates at 16 bits. There
weights have 7 bits, and queries stay words: as bytes they would have 6 bits and a sign, or take as many instructions.
"""

from __future__ import annotations

from pqkv.kernels.cpu.byte_lookups.avx2 import Avx2
from pqkv.kernels.cpu.byte_lookups.avx512 import Avx512
from pqkv.kernels.cpu.byte_lookups.instructions import (
    BLOCK,
    I8,
    Portable,
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
from pqkv.kernels.cpu.byte_lookups.vnni import BytePlanes, Vnni
from pqkv.vector_code import I16, I32


class ByteQueries(Portable):
    """Queries of one byte a number, in plain LLVM."""

    largest_query = 127
    query_bytes = 1
    key_components = 4

    def key_operand(self, found: list[Value]) -> list[Value]:
        """Four components of a token in four neighbouring bytes."""
        every = joined(self.builder, found)
        tokens = [self.score_tokens(k) for k in range(4)]
        return [pick(self.builder, every, None, [t + s * self.width for t in own for s in range(4)]) for own in tokens]

    def add_keys(self, total: Value, components: Value, query: Value) -> Value:
        """total, int32, and to each lane the products of four bytes, unsigned ones with signed ones."""
        builder, n = self.builder, components.type.count
        kind = vector_of(I32, n)
        product = builder.mul(builder.zext(components, kind), builder.sext(query, kind))
        for i in range(4):
            total = builder.add(total, pick(builder, product, None, range(i, n, 4)))
        return total


class ByteWeights(Portable):
    """Weights of one byte, token by token, in plain LLVM."""

    largest_weight = 255
    value_sums = 1
    weight_bytes = BLOCK

    def keep_weights(self, rows: list[Value], pointer: Value, offset: Value) -> None:
        """Write the lowest bytes."""
        keep(self.builder, self.builder.trunc(self.words(rows), vector_of(I8, BLOCK)), pointer, offset)

    def weights(self, pointer: Value, offset: Value, part: int) -> list[Value]:
        """The weights of a part of a block."""
        return [load(self.builder, at(self.builder, pointer, offset), part * self.width, vector_of(I8, self.width))]

    def components(self, found: Value) -> list[Value]:
        """Looked-up bytes as they are."""
        return [found]

    def folded(self, sums: list[Value]) -> Value:
        """The sums of a component and a head."""
        return sums[0]


class OnePlane(ByteQueries, ByteWeights):
    """Both."""


def _quads(builder: Value, found: list[Value]) -> list[Value]:
    """Bytes of four vectors in turns, within each 16 bytes of a register: `vpunpck` of bytes, then of pairs."""
    width = found[0].type.count

    def unpacked(x: Value, y: Value, half: int, size: int) -> Value:
        order = []
        for lane in range(0, width, 16):
            for i in range(0, 8, size):
                for s in (0, width):
                    order += [lane + half + i + j + s for j in range(size)]
        return pick(builder, x, y, order)

    made = []
    for half in (0, 8):
        first, second = (unpacked(found[i], found[i + 1], half, 1) for i in (0, 2))
        made += [unpacked(first, second, again, 2) for again in (0, 8)]
    return made


class Avx2OnePlane(ByteWeights, Avx2):
    """`vpmaddubsw` sums two products in 16 bits: 127 * 128 * 2 is below 2**15."""

    largest_weight = 127

    def add_values(self, sums: list[Value], components: list[Value], weights: list[Value]) -> list[Value]:
        builder, (total,), kind = self.builder, sums, vector_of(I16, 16)
        pairs = called(builder, "llvm.x86.avx2.pmadd.ub.sw", kind, [weights[0], components[0]])
        return [self.add_words(total, pairs, same(I16, 16, 1))]


class ByteDots(OnePlane, BytePlanes):
    """`vpdpbusd` for keys and for values."""

    def key_operand(self, found: list[Value]) -> list[Value]:
        return _quads(self.builder, found)

    def add_keys(self, total: Value, components: Value, query: Value) -> Value:
        return self.dot_bytes(total, components, query)

    def add_values(self, sums: list[Value], components: list[Value], weights: list[Value]) -> list[Value]:
        return [self.dot_bytes(sums[0], weights[0], components[0])]


class VnniOnePlane(ByteDots, Vnni):
    """On the vectors of AVX2."""


class Avx512OnePlane(ByteDots, Avx512):
    """On those of AVX-512."""


ONE_PLANE: dict[str, type[Portable]] = {
    "portable": OnePlane, "avx2": Avx2OnePlane, "vnni": VnniOnePlane, "avx512": Avx512OnePlane,
}  # fmt: skip
