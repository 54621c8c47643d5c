"""The inner bodies of `coded`, emitted instruction by instruction: Numba has no unrolled loops, and integers that
become 64 bits wide cost a third of a look-up. The simulator's twins are in `simulated.py`.

A look-up takes two instructions to the address (cut the field out in place, shift and add the base), then the load.
"""

from functools import cache

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

from pqkv.kernels.cuda.intrinsics import _asm, _halves

_I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_SHARED = ir.PointerType(_I32, addrspace=3)


@cache
def words_loader(count):
    """load(words, index, target, at): `count` (1, 2 or 4) words from global memory at `index` (int64, a multiple of
    `count`) into the local array `target` (uint32) from `at` on.
    """

    @intrinsic
    def load_words(typing_context, words, index, target, at):
        def generate(context, builder, signature, arguments):
            source, into = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2))
            address = builder.ptrtoint(builder.gep(source.data, [arguments[1]]), _I64)
            if count == 1:
                loaded = [_asm(builder, _I32, [address], "ld.global.nc.u32 $0, [$1];", "=r,l")]
            else:
                names = ", ".join(f"${i}" for i in range(count))
                code = f"ld.global.nc.v{count}.u32 {{{names}}}, [${count}];"
                struct = ir.LiteralStructType([_I32] * count)
                found = _asm(builder, struct, [address], code, "=r," * count + "l")
                loaded = [builder.extract_value(found, i) for i in range(count)]
            for i, value in enumerate(loaded):
                builder.store(value, builder.gep(into.data, [builder.add(arguments[3], _I64(i))]))
            return context.get_dummy_value()

        return types.void(words, types.int64, target, types.int64), generate

    return load_words


@cache
def key_step(step):
    """look_up(held, tables, at, query, query_at, score): see `KeyStep`. `at`, `query_at` are bytes from the start of
    the shared arrays `tables` (the first subspace's table) and `query` (fp16x2, [subspace][word][head]). Scores
    (float32, [token][head]) are added to.
    """

    @intrinsic
    def look_up_keys(typing_context, held, tables, at, query, query_at, score):
        def generate(context, builder, signature, arguments):
            held, tables, query, score = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 1, 3, 5)
            )
            _emit_keys(builder, step, _Place(builder, tables, arguments[2]), _Place(builder, query, arguments[4]),
                       _Local(builder, held), _Local(builder, score))  # fmt: skip
            return context.get_dummy_value()

        return types.void(held, tables, types.uint32, query, types.uint32, score), generate

    return look_up_keys


@cache
def value_step(step):
    """mix(line, tables, at, weights, weights_at, acc, acc_at): see `ValueStep`. `at` is the byte of this subspace in a
    row of the shared array `tables`, `weights_at` that of the first token's weights, a multiple of 16. acc (float32,
    [head][element] from `acc_at` on) is added to.
    """

    @intrinsic
    def mix_values(typing_context, line, tables, at, weights, weights_at, acc, acc_at):
        def generate(context, builder, signature, arguments):
            line, tables, weights, acc = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 1, 3, 5)
            )
            _emit_values(builder, step, _Place(builder, tables, arguments[2]), _Place(builder, weights, arguments[4]),
                         _Local(builder, line), _Local(builder, acc, arguments[6]))  # fmt: skip
            return context.get_dummy_value()

        return types.void(line, tables, types.uint32, weights, types.uint32, acc, types.int64), generate

    return mix_values


@cache
def bias_step(tokens, group):
    """add_bias(rows, at, weights, weights_at, score): to the scores (float32, [token][head]) of `tokens` tokens, a
    multiple of 4, their numbers in the global array `rows` (float32) from `at` (int64, a multiple of 4) on, times the
    `group` float32 from byte `weights_at` of the shared array `weights` (uint32) on, one for each head.
    """

    @intrinsic
    def add_bias(typing_context, rows, at, weights, weights_at, score):
        def generate(context, builder, signature, arguments):
            rows, weights, score = (
                context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in (0, 2, 4)
            )
            _emit_bias(builder, tokens, group, builder.gep(rows, [arguments[1]]),
                       _Place(builder, weights, arguments[3]), _Local(builder, score))  # fmt: skip
            return context.get_dummy_value()

        return types.void(rows, types.int64, weights, types.uint32, score), generate

    return add_bias


class _Local:
    """A local array, read and written at constant places so that it stays in registers."""

    def __init__(self, builder, data, first=None):
        self.builder, self.data, self.first = builder, data, first

    def _pointer(self, index):
        place = _I64(index) if self.first is None else self.builder.add(self.first, _I64(index))
        return self.builder.gep(self.data, [place])

    def load(self, index):
        return self.builder.load(self._pointer(index))

    def add(self, index, value):
        self.builder.store(self.builder.fadd(self.load(index), value), self._pointer(index))

    def add_product(self, index, a, b):
        self.builder.store(self.builder.fma(a, b, self.load(index)), self._pointer(index))


class _Place:
    """Bytes of a shared array from `offset` on, by 32-bit addresses."""

    def __init__(self, builder, data, offset):
        self.builder = builder
        self.base = builder.add(builder.ptrtoint(builder.addrspacecast(data, _SHARED), _I32), offset)

    def plus(self, distance):
        """A copy further on by a computed distance."""
        other = object.__new__(_Place)
        other.builder, other.base = self.builder, self.builder.add(self.base, distance)
        return other

    def load(self, byte, count):
        """`count` words from a constant byte on, as wide as they divide into."""
        width = next(w for w in (4, 2, 1) if count % w == 0)
        found = []
        for first in range(0, count, width):
            pointer = self.builder.inttoptr(self.base, _SHARED)
            pointer = self.builder.gep(pointer, [_I32(byte // 4 + first)])
            if width > 1:
                pointer = self.builder.bitcast(pointer, ir.PointerType(ir.VectorType(_I32, width), addrspace=3))
            loaded = self.builder.load(pointer, align=4 * width)
            found += [self.builder.extract_element(loaded, _I32(i)) for i in range(width)] if width > 1 else [loaded]
        return found


def _field(builder, words, bit, nbits, scale):
    """The code of `nbits` bits at `bit`, times `scale`: two instructions where the scale is a power of two."""
    word, low = words(bit // 32), bit % 32
    if low + nbits > 32:
        word = _asm(
            builder, _I32, [word, words(bit // 32 + 1), _I32(low)], "shf.r.wrap.b32 $0, $1, $2, $3;", "=r,r,r,r"
        )
        low = 0
    if low + nbits == 32:
        code, low = builder.lshr(word, _I32(low)), 0
    elif nbits == 8 and low % 8 == 0:
        code = _asm(builder, _I32, [word], f"prmt.b32 $0, $1, 0, 0x444{low // 8};", "=r,r")
        low = 0
    else:  # hidden from the optimizer, which would shift first and mask then: three instructions
        code = _asm(builder, _I32, [word], f"and.b32 $0, $1, {((1 << nbits) - 1) << low};", "=r,r")
    if scale & (scale - 1):
        return builder.mul(builder.lshr(code, _I32(low)), _I32(scale))
    shift = scale.bit_length() - 1 - low
    return builder.shl(code, _I32(shift)) if shift >= 0 else builder.lshr(code, _I32(-shift))


def _fma(builder, a, b, c):
    if c is None:
        return _asm(builder, _I32, [a, b], "mul.rn.f16x2 $0, $1, $2;", "=r,r,r")
    return _asm(builder, _I32, [a, b, c], "fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r")


def _add(builder, a, b):
    return _asm(builder, _I32, [a, b], "add.rn.f16x2 $0, $1, $2;", "=r,r,r")


def _emit_keys(builder, step, table, query, held, score):
    one = step.group == 1 and not step.decodes
    sums: dict[tuple[int, int], ir.Value] = {}
    for m in range(step.subspaces):
        heads = step.group * step.entry_words
        asked = query.load(4 * m * heads, heads) if step.decodes else []
        for token in range(step.tokens):
            place = table.plus(_field(builder, held.load, step.bit(token, m), step.nbits, 4 * step.entry_words))
            entry = place.load(4 * m * step.entries * step.entry_words, step.entry_words)
            for w, word in enumerate(entry):
                if step.decodes:
                    for g in range(step.group):
                        part = asked[w * step.group + g]
                        sums[token, g] = _fma(builder, part, word, sums.get((token, g)))
                elif one:
                    score.add(token, builder.bitcast(word, _F32))
                elif (token, w) in sums:
                    sums[token, w] = _add(builder, sums[token, w], word)
                else:
                    sums[token, w] = word
        if m % step.flush == step.flush - 1:
            for (token, part), word in sums.items():
                lower, upper = _halves(builder, word)
                if step.decodes:
                    score.add(token * step.group + part, builder.fadd(lower, upper))
                else:
                    score.add(token * step.group + 2 * part, lower)
                    if 2 * part + 1 < step.group:
                        score.add(token * step.group + 2 * part + 1, upper)
            sums = {}


def _emit_values(builder, step, table, weights, line, acc):
    twice = ("mov.b32 {l, h}, $1; mov.b32 $0, {l, l};", "mov.b32 {l, h}, $1; mov.b32 $0, {h, h};")
    width = step.weight_words
    for start in range(0, step.tokens, 8):
        sums: dict[tuple[int, int], ir.Value] = {}
        for first in (start, start + 4):
            together = weights.load(4 * first * width, 4 * width)
            four: dict[tuple[int, int], ir.Value] = {}
            for token in range(first, first + 4):
                place = table.plus(_field(builder, line.load, step.bit(token), step.nbits, 4 * step.stride))
                for w in range(step.words):
                    (entry,) = place.load(4 * w * step.entries * step.stride, 1)
                    for g in range(step.group):
                        weight = together[(token - first) * width + g // 2]
                        if step.group > 1:
                            weight = _asm(builder, _I32, [weight], f"{{ .reg .b16 l, h; {twice[g % 2]} }}", "=r,r")
                        four[w, g] = _fma(builder, weight, entry, four.get((w, g)))
            for part, word in four.items():
                sums[part] = _add(builder, sums[part], word) if part in sums else word
        for (w, g), word in sums.items():
            lower, upper = _halves(builder, word)
            acc.add(g * step.elements + 2 * w, lower)
            if 2 * w + 1 < step.elements:
                acc.add(g * step.elements + 2 * w + 1, upper)


def _emit_bias(builder, tokens, group, rows, weights, score):
    heads = [builder.bitcast(word, _F32) for word in weights.load(0, group)]
    start, four = builder.ptrtoint(rows, _I64), ir.LiteralStructType([_F32] * 4)
    for first in range(0, tokens, 4):
        code = "ld.global.nc.v4.f32 {$0, $1, $2, $3}, [$4];"
        found = _asm(builder, four, [builder.add(start, _I64(4 * first))], code, "=f,=f,=f,=f,l")
        for token in range(4):
            for g, weight in enumerate(heads):
                score.add_product((first + token) * group + g, builder.extract_value(found, token), weight)
