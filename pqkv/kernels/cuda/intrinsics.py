"""PTX that Numba does not emit by itself, as intrinsics. The simulator's twin is `simulated.py`.

Numba infers the types of these, so they carry no annotations; each docstring gives them.
"""

from llvmlite import ir
from numba import cuda, types
from numba.cuda.extending import intrinsic

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_PAIR = types.UniTuple(types.float32, 2)

# A function that kernels call, always written out where it is called: a call would put arrays of registers into memory.
device_function = cuda.jit(device=True, forceinline=True)


def _asm(builder, result, operands, code, constraints, *, effects=False):
    kind = ir.FunctionType(result, [operand.type for operand in operands])
    return builder.asm(kind, code, constraints, operands, effects)


def _row_loader(unpack):
    """An intrinsic that loads 128 bits of `words` from `index` on and stores them as float32 (four, or eight of
    16 bits) in `target` from `at` on; a local array stays in registers.
    """

    @intrinsic
    def load_row(typing_context, words, index, target, at):
        def generate(context, builder, signature, arguments):
            source, into = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2))
            address = builder.ptrtoint(builder.gep(source.data, [arguments[1]]), _I64)
            struct = ir.LiteralStructType([_I32] * 4)
            loaded = _asm(builder, struct, [address], "ld.global.nc.v4.u32 {$0, $1, $2, $3}, [$4];", "=r,=r,=r,=r,l")
            floats = [f for i in range(4) for f in unpack(builder, builder.extract_value(loaded, i))]
            for i, value in enumerate(floats):
                builder.store(value, builder.gep(into.data, [builder.add(arguments[3], _I64(i))]))
            return context.get_dummy_value()

        return types.void(words, types.int64, target, types.int64), generate

    return load_row


def _halves(builder, word):
    code = "{ .reg .b16 l, h; mov.b32 {l, h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h; }"
    struct = _asm(builder, ir.LiteralStructType([_F32, _F32]), [word], code, "=f,=f,r")
    return [builder.extract_value(struct, i) for i in range(2)]


def _bfloats(builder, word):
    parts = builder.shl(word, _I32(16)), builder.and_(word, _I32(0xFFFF0000))
    return [builder.bitcast(part, _F32) for part in parts]


load_floats = _row_loader(lambda builder, word: [builder.bitcast(word, _F32)])
load_halves = _row_loader(_halves)
load_bfloats = _row_loader(_bfloats)


@intrinsic
def floats_of_halves(typing_context, word):
    """uint32 holding two float16 -> (low, high) float32."""

    def generate(context, builder, signature, arguments):
        return context.make_tuple(builder, _PAIR, _halves(builder, arguments[0]))

    return _PAIR(types.uint32), generate


@intrinsic
def floats_of_bfloats(typing_context, word):
    """uint32 holding two bfloat16 -> (low, high) float32."""

    def generate(context, builder, signature, arguments):
        return context.make_tuple(builder, _PAIR, _bfloats(builder, arguments[0]))

    return _PAIR(types.uint32), generate


@intrinsic
def bits_of_halves(typing_context, low, high):
    """Two float32 -> uint32 of both rounded to float16, `low` in the low half."""

    def generate(context, builder, signature, arguments):
        return _asm(builder, _I32, [arguments[1], arguments[0]], "cvt.rn.f16x2.f32 $0, $1, $2;", "=r,f,f")

    return types.uint32(types.float32, types.float32), generate


@intrinsic
def multiply_add_halves(typing_context, a, b, c):
    """a * b + c of two float16 each, in uint32; one rounding."""

    def generate(context, builder, signature, arguments):
        return _asm(builder, _I32, arguments, "fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r")

    return types.uint32(types.uint32, types.uint32, types.uint32), generate


@intrinsic
def add_halves(typing_context, a, b):
    """a + b of two float16 each, in uint32."""

    def generate(context, builder, signature, arguments):
        return _asm(builder, _I32, arguments, "add.rn.f16x2 $0, $1, $2;", "=r,r,r")

    return types.uint32(types.uint32, types.uint32), generate


@intrinsic
def exchange(typing_context, mask, value, offset):
    """The float32 `value` of the lane whose number differs by XOR `offset`, among the lanes in `mask`."""

    def generate(context, builder, signature, arguments):
        mask, value, offset = arguments
        bits = builder.bitcast(value, _I32)
        code = "shfl.sync.bfly.b32 $0, $1, $2, 31, $3;"
        moved = _asm(builder, _I32, [bits, offset, mask], code, "=r,r,r,r", effects=True)
        return builder.bitcast(moved, _F32)

    return types.float32(types.uint32, types.float32, types.int32), generate


@intrinsic
def power_of_two(typing_context, x):
    """2**x of float32 within 2**-22, 0 below -126 (results that float32 holds only denormalized are flushed)."""

    def generate(context, builder, signature, arguments):
        return _asm(builder, _F32, arguments, "ex2.approx.ftz.f32 $0, $1;", "=f,f")

    return types.float32(types.float32), generate


@intrinsic
def float_of(typing_context, word):
    """uint32 -> the float32 of these bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _F32)

    return types.float32(types.uint32), generate


@intrinsic
def bits_of(typing_context, value):
    """float32 -> its bits, uint32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], _I32)

    return types.uint32(types.float32), generate


@intrinsic
def low_twice(typing_context, word):
    """uint32 -> its low half in both halves."""

    def generate(context, builder, signature, arguments):
        return _asm(builder, _I32, arguments, "prmt.b32 $0, $1, 0, 0x1010;", "=r,r")

    return types.uint32(types.uint32), generate


@intrinsic
def high_twice(typing_context, word):
    """uint32 -> its high half in both halves."""

    def generate(context, builder, signature, arguments):
        return _asm(builder, _I32, arguments, "prmt.b32 $0, $1, 0, 0x3232;", "=r,r")

    return types.uint32(types.uint32), generate


@intrinsic
def shared_word(typing_context, table, offset):
    """The uint32 at byte `offset` (uint32, a multiple of 4) of a shared array of uint32.

    Indexing the array would compute a 64-bit address for every look-up; shared memory has 32-bit ones.
    """

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        shared = builder.addrspacecast(array.data, ir.PointerType(_I32, addrspace=3))
        base = builder.ptrtoint(shared, _I32)
        address = builder.add(base, arguments[1])
        return builder.load(builder.inttoptr(address, shared.type))

    return types.uint32(table, types.uint32), generate


@intrinsic
def copy_four(typing_context, words, index, table, at):
    """Begin to copy 128 bits of the global array `words` from `index` (int64) on into the shared array `table` from
    `at` (uint32) on, both multiples of 4; no register holds them on the way. See `finish_copies`.
    """

    def generate(context, builder, signature, arguments):
        source, into = (context.make_array(signature.args[i])(context, builder, arguments[i]) for i in (0, 2))
        address = builder.ptrtoint(builder.gep(source.data, [arguments[1]]), _I64)
        shared = builder.addrspacecast(into.data, ir.PointerType(_I32, addrspace=3))
        place = builder.add(builder.ptrtoint(shared, _I32), builder.mul(arguments[3], _I32(4)))
        _asm(
            builder, ir.VoidType(), [place, address], "cp.async.cg.shared.global [$0], [$1], 16;", "r,l,~{memory}",
            effects=True,
        )  # fmt: skip
        return context.get_dummy_value()

    return types.void(words, types.int64, table, types.uint32), generate


@intrinsic
def finish_copies(typing_context):
    """Wait for this thread's `copy_four`; others see them after a barrier."""

    def generate(context, builder, signature, arguments):
        _asm(builder, ir.VoidType(), [], "cp.async.wait_all;", "~{memory}", effects=True)
        return context.get_dummy_value()

    return types.void(), generate
