"""What look-ups in byte tables ask of a processor, as an object that emits it: here in plain LLVM, for any machine.

Sixty-four tokens are a block. Their codes of one subspace are vectors of bytes, `width` tokens each. A *look-up* brings
one component of each code's centroid, a byte; *products* of components with a query (keys) or with weights (values) are
summed in int32, and no sum can overflow (`pqkv.kernels.cpu.byte_lookups.shapes`). So every path gives the same
integers, whatever the order, and what is done in floats afterwards has one order for all: `Portable` runs everywhere
and says what the others must give. `builder` is llvmlite's; of Numba it takes helpers for that.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, Generic, TypeVar

from llvmlite import ir
from numba.core import cgutils

from pqkv.vector_code import FLOAT, I16, I32, I64, prefetch

I8, F32 = ir.IntType(8), FLOAT
BLOCK = 64  # tokens
LARGEST_QUERY = 32_512  # of a query's numbers as integers of two bytes: a byte times 256
WEIGHT_BYTES = 2 * BLOCK  # of the weights of a block for one head, at most

Made = TypeVar("Made")
Value = Any  # of llvmlite, which has no types: a value, a builder or a pointer


def vector_of(kind: ir.Type, lanes: int) -> ir.VectorType:
    """The type of `lanes` numbers of one kind."""
    return ir.VectorType(kind, lanes)


def same(kind: ir.Type, lanes: int, value: float) -> Value:
    """One constant in every lane."""
    return ir.Constant(vector_of(kind, lanes), [value] * lanes)


def at(builder: Value, pointer: Value, offset: Value) -> Value:
    """The address `offset` bytes on."""
    if isinstance(offset, int):
        offset = I64(offset)
    return builder.gep(builder.bitcast(pointer, I8.as_pointer()), [offset])


def load(builder: Value, pointer: Value, offset: Value, kind: ir.Type) -> Value:
    """A number or vector, `offset` bytes behind a pointer, however it is aligned."""
    return builder.load(builder.bitcast(at(builder, pointer, offset), kind.as_pointer()), align=1)


def keep(builder: Value, value: Value, pointer: Value, offset: Value) -> None:
    """Write a number or vector `offset` bytes behind a pointer."""
    builder.store(value, builder.bitcast(at(builder, pointer, offset), value.type.as_pointer()), align=1)


def pick(builder: Value, a: Value, b: Value | None, lanes: Sequence[int]) -> Value:
    """A vector of the lanes named, of a and behind it b."""
    mask = ir.Constant(vector_of(I32, len(lanes)), list(lanes))
    return builder.shuffle_vector(a, ir.Constant(a.type, ir.Undefined) if b is None else b, mask)


def joined(builder: Value, parts: Sequence[Value]) -> Value:
    """Vectors of one type, one behind the other; as many as a power of two."""
    parts = list(parts)
    while len(parts) > 1:
        size = 2 * parts[0].type.count
        parts = [pick(builder, a, b, range(size)) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def called(builder: Value, name: str, result: ir.Type, arguments: Sequence[Value]) -> Value:
    """What an intrinsic of LLVM returns."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, list(arguments))


def align_stack(builder: Value) -> None:
    """Have registers that do not fit lie on whole lines of the stack: LLVM aligns it only where something asks for it
    before registers are given out, and half of what it puts there would straddle two lines of the cache.
    """
    room = cgutils.alloca_once(builder, vector_of(I8, BLOCK))
    room.align = BLOCK
    kept = ir.InlineAsm(ir.FunctionType(ir.VoidType(), [room.type]), "", "r", side_effect=True)
    builder.call(kept, [room])


def stay_in_order(builder: Value) -> None:
    """Keep what reads memory on its side of this place: LLVM reads ahead what it then has no registers for."""
    kept = ir.InlineAsm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", side_effect=True)
    builder.call(kept, [])


class Asked:
    """Codes to ask memory for while others are looked up: those of subspace 0 begin at address `start`, of the next
    `line` bytes on. A line with each look-up: asked for all at once, they would fill what a core can wait for. Of codes
    that lie across two lines of the cache the first is asked for; the second is that of the next subspace.
    """

    def __init__(self, builder: Value, start: Value, line: Value) -> None:
        self._builder, self._start, self._line = builder, start, line

    def ask(self, first: Value, count: int) -> None:
        """Those of `count` subspaces from `first` on, into the second-level cache."""
        builder = self._builder
        for i in range(count):
            ahead = builder.mul(builder.add(first, I64(i)), self._line)
            prefetch(builder, builder.inttoptr(builder.add(self._start, ahead), I8.as_pointer()), 2)


class Steps(Generic[Made]):
    """Code that is emitted step by step between other code, so that a core can do both at once."""

    def __init__(self, steps: Generator[None, None, Made]) -> None:
        self._steps, self._made = steps, None

    def emit(self, count: int) -> None:
        """The next steps, as far as there are any."""
        for _ in range(count):
            if self._made is None:
                try:
                    next(self._steps)
                except StopIteration as end:
                    self._made = end.value

    def made(self) -> Made:
        """What it comes to, the rest emitted first."""
        while self._made is None:
            self.emit(1)
        return self._made


class Portable:
    """Plain LLVM. Subclasses put a processor's own instructions in its place, and give the same integers.

    `lanes` is how many partial sums values are kept in: lane i holds tokens 4 i ... 4 i + 3 of each `4 * lanes`. A
    weight's integer is wrong by half a step, and a step is the largest weight of `scaled` blocks over `largest_weight`:
    against the root of the sum of their squares, sqrt(64 scaled / 12) / largest_weight at most, in the mean.
    """

    name = "portable"
    width = BLOCK  # tokens of a vector of codes
    lanes = 16  # of the sums of values
    scaled = 1  # blocks whose weights share a scale
    largest_query = LARGEST_QUERY  # of the integers that a query's numbers become
    largest_weight = 32_767  # of those that weights become
    value_sums = 1  # accumulators of a value's component and a head
    query_bytes = 2  # of an integer of a query
    weight_bytes = WEIGHT_BYTES  # of the weights of a block for one head
    key_components = 2  # that an operand of keys holds
    roomy = False  # whether registers hold what is looked up and the sums of four heads besides

    def __init__(self, builder: Value) -> None:
        self.builder = builder

    @property
    def parts(self) -> int:
        """Vectors of codes that make a block."""
        return BLOCK // self.width

    # codes

    def codes(self, pointer: Value, offset: Value, part: int, nbits: int) -> Value:
        """The codes of a part of a block whose packed bytes begin `offset` bytes behind a pointer: <width x i8>."""
        start = at(self.builder, pointer, offset)
        return getattr(self, f"_codes_{nbits}")(start, part * self.width * nbits // 8)

    def _codes_8(self, pointer: Value, offset: int) -> Value:
        return load(self.builder, pointer, offset, vector_of(I8, self.width))

    def _codes_4(self, pointer: Value, offset: int) -> Value:
        builder, half = self.builder, self.width // 2
        pairs = builder.zext(load(builder, pointer, offset, vector_of(I8, half)), vector_of(I16, half))
        spread = builder.or_(pairs, builder.shl(pairs, same(I16, half, 4)))
        return builder.bitcast(builder.and_(spread, same(I16, half, 0x0F0F)), vector_of(I8, self.width))

    def _codes_6(self, pointer: Value, offset: int) -> Value:
        size = self.width * 6 // 8
        packed = load(self.builder, pointer, offset, vector_of(I8, size))
        none = ir.Constant(packed.type, [0] * size)
        lanes = [3 * i + j if j < 3 else size for i in range(self.width // 4) for j in range(4)]
        return self._spread_6(pick(self.builder, packed, none, lanes))

    def _spread_6(self, triples: Value) -> Value:
        """Four codes in three of four bytes become a byte each: halves move apart, then quarters."""
        builder, n = self.builder, self.width // 4
        x = builder.bitcast(triples, vector_of(I32, n))
        for shift, low, high in ((4, 0xFFF, 0xFFF0000), (2, 0x3F003F, 0x3F003F00)):
            moved = builder.and_(builder.shl(x, same(I32, n, shift)), same(I32, n, high))
            x = builder.or_(builder.and_(x, same(I32, n, low)), moved)
        return builder.bitcast(x, vector_of(I8, self.width))

    # look-ups

    def look_up(self, codes: Value, table: Value, offset: Value, entries: int) -> Value:
        """The byte that each code names in a table of `entries` bytes, `offset` bytes behind a pointer."""
        builder, start = self.builder, at(self.builder, table, offset)
        found = ir.Constant(codes.type, ir.Undefined)
        for i in range(self.width):
            code = builder.zext(builder.extract_element(codes, I32(i)), I64)
            found = builder.insert_element(found, builder.load(builder.gep(start, [code])), I32(i))
        return found

    # keys

    def key_operand(self, found: list[Value]) -> list[Value]:
        """`key_components` components as products take them: four vectors, whose lanes meet four bytes of a query."""
        return self.word_pairs(*found)

    def add_keys(self, total: Value, components: Value, query: Value) -> Value:
        """A sum, and to it the products of a vector of `key_operand` with numbers of a query, in every lane."""
        return self.add_words(total, components, query)

    def word_pairs(self, a: Value, b: Value) -> list[Value]:
        """Two components, unsigned bytes, as pairs of words (a of a token, b of it): four vectors, the tokens of whose
        pairs are `score_tokens`.
        """
        builder = self.builder
        wide = [builder.zext(x, vector_of(I16, self.width)) for x in (a, b)]
        tokens = [self.score_tokens(k) for k in range(4)]
        return [pick(builder, wide[0], wide[1], [t + s * self.width for t in own for s in range(2)]) for own in tokens]

    def score_tokens(self, k: int) -> list[int]:
        """Which tokens of a part the lanes of sum k belong to."""
        return [16 * (lane // 4) + 4 * k + lane % 4 for lane in range(self.width // 4)]

    def add_words(self, total: Value, a: Value, b: Value) -> Value:
        """total, int32, and to each lane the products of two pairs of words, signed."""
        builder, n = self.builder, a.type.count
        x, y = (builder.sext(v, vector_of(I32, n)) for v in (a, b))
        product = builder.mul(x, y)
        even, odd = (pick(builder, product, None, range(i, n, 2)) for i in range(2))
        return builder.add(total, builder.add(even, odd))

    # values

    def keep_weights(self, rows: list[Value], pointer: Value, offset: Value) -> None:
        """Write the weights of a block, the lower halves of four <16 x i32>, unsigned, as `add_values` reads them."""
        keep(self.builder, self.words(rows), pointer, offset)

    def words(self, rows: list[Value]) -> Value:
        """The lower halves of numbers in order: <64 x i16>."""
        builder = self.builder
        return joined(builder, [builder.trunc(row, vector_of(I16, row.type.count)) for row in rows])

    def weights(self, pointer: Value, offset: Value, part: int) -> list[Value]:
        """The weights of a part of a block."""
        return [load(self.builder, pointer, offset, vector_of(I16, BLOCK))]

    def components(self, found: Value) -> list[Value]:
        """Looked-up bytes, signed, as `add_values` takes them."""
        return [self.builder.sext(found, vector_of(I16, self.width))]

    def add_values(self, sums: list[Value], components: list[Value], weights: list[Value]) -> list[Value]:
        """The sums <lanes x i32>, and to them the products of components with weights."""
        builder, total = self.builder, sums[0]
        kind = vector_of(I32, BLOCK)
        product = builder.mul(builder.sext(components[0], kind), builder.zext(weights[0], kind))
        for first in range(0, BLOCK, 4 * self.lanes):
            for j in range(4):
                total = builder.add(total, pick(builder, product, None, range(first + j, first + 4 * self.lanes, 4)))
        return [total]

    def folded(self, sums: list[Value]) -> Value:
        """The sums of a component and a head as one vector <lanes x i32>."""
        return sums[0]
